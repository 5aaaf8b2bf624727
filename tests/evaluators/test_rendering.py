import json
from pathlib import Path
from typing import Any

import pytest

from evaluators.rendering import (
    Wording,
    check_chat_template,
    encode,
    end_token_ids,
    load_tokenizer,
    render,
    stop_token_ids,
)
from evaluators.samples import Message, Piece, Sample
from nan_merge.errors import CheckpointError, EvaluationError
from tests.language_checkpoints import make_tiny_tokenizer

pytest.importorskip("transformers", reason="transformers is not installed (requirements/peers.txt)")

TEXT, CHAT = Wording(uses_chat_template=False), Wording(uses_chat_template=True)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tiny_tokenizer()


def sample(lead: Piece, shots: tuple[Piece, ...], question: Piece) -> Sample:
    return Sample("s/0", "s/0", "s", lead, shots, question, (), (), "A")


def user(content: str) -> Message:
    return Message("user", content)


def test_text_goes_together_as_it_stands(tokenizer: Any):
    asked = sample("Hint\n\n", ("one\n", "two\n"), "three ")
    assert render(tokenizer, asked, TEXT, 100).text == "Hint\n\none\ntwo\nthree "


def test_the_beginning_of_sequence_comes_once_and_no_end(tokenizer: Any):
    begin = tokenizer.bos_token_id
    assert tokenizer("fox")["input_ids"][-1] == tokenizer.eos_token_id  # it would add an end
    for text in ("the fox", "<s>the fox"):
        ids = encode(tokenizer, [text], TEXT)[0]
        assert ids.count(begin) == 1 and ids[0] == begin
        assert tokenizer.eos_token_id not in ids
    chat = render(tokenizer, sample("", (), (user("fox"),)), CHAT, 100).token_ids
    assert chat.count(begin) == 1 and chat[0] == begin


def test_neighbours_of_one_role_become_one_message_and_empty_ones_none(tokenizer: Any):
    shot = (user("one"), Message("assistant", "A"))
    asked = sample((user("hint"),), (shot,), (Message("system", ""), user("two")))
    text = render(tokenizer, asked, CHAT, 100).text
    assert text == "<s><|user|>hint\none</s><|assistant|>A</s><|user|>two</s><|assistant|>"


def test_text_becomes_one_message_where_the_chat_template_is_asked_for(tokenizer: Any):
    text = render(tokenizer, sample("hint ", ("one ",), "two"), CHAT, 100).text
    assert text == "<s><|user|>hint one two</s><|assistant|>"


def test_an_answer_that_is_begun_goes_on(tokenizer: Any):
    asked = sample("", (), (user("two"), Message("assistant", "It is")))
    assert render(tokenizer, asked, CHAT, 100).text == "<s><|user|>two</s><|assistant|>It is"


def test_messages_without_a_template_are_joined_by_the_separator(tokenizer: Any):
    asked = sample((), ((user("one"), Message("assistant", "A")),), (user("two"),))
    assert render(tokenizer, asked, Wording(False, "\n\n"), 100).text == "one\n\nA\n\ntwo"


def test_shots_are_dropped_from_the_end_until_the_prompt_fits(tokenizer: Any):
    asked = sample("", ("one ", "two ", "three "), "fox")
    fits = len(render(tokenizer, sample("", ("one ",), "fox"), TEXT, 100).token_ids)
    prompt = render(tokenizer, asked, TEXT, fits)
    assert (prompt.text, prompt.num_dropped_shots) == ("one fox", 2)
    prompt = render(tokenizer, asked, TEXT, 1)  # not even the question fits
    assert (prompt.text, prompt.num_dropped_shots) == ("fox", 3)
    assert len(prompt.token_ids) > 1


def test_a_template_that_refuses_is_named_with_the_sample(tokenizer: Any):
    asked = sample("", (), (user("one"), Message("system", "two")))
    with pytest.raises(EvaluationError) as error:
        render(tokenizer, asked, CHAT, 100)
    assert str(error.value) == (
        "Sample s/0: the model's chat template refuses its messages (user, system): the system "
        "speaks first. Evaluate with chat_template: false, or mend the template."
    )


def test_a_model_without_a_chat_template_says_what_to_do(tmp_path: Path):
    check_chat_template(make_tiny_tokenizer(), tmp_path)
    with pytest.raises(EvaluationError) as error:
        check_chat_template(make_tiny_tokenizer(chat=False), tmp_path)
    assert str(error.value) == (
        f"{tmp_path} has no chat template. Copy chat_template.jinja, or tokenizer_config.json with "
        "its 'chat_template', from the base model, or evaluate with `--no-chat-template` "
        "(`chat_template: false` in a run file)."
    )


def test_half_a_surrogate_pair_is_asked_as_a_question_mark(tokenizer: Any):
    prompt = render(tokenizer, sample("", (), "fox \ud83d"), TEXT, 100)
    assert tokenizer.decode(prompt.token_ids[1:]) == "fox ?"
    assert len(prompt.digest) == 16


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"its tokenizer cannot be loaded.*Copy the"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="There is no checkpoint folder"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_tokenizer_that_brings_code_is_not_run(tmp_path: Path):
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"})
    )
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: ...\n")
    with pytest.raises(CheckpointError):
        load_tokenizer(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_an_answer_ends_by_what_tokenizer_and_checkpoint_name(tokenizer: Any, tmp_path: Path):
    assert end_token_ids(tokenizer, tmp_path) == (tokenizer.eos_token_id,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 0], "top_k": 3}')
    assert end_token_ids(tokenizer, tmp_path) == (0, tokenizer.eos_token_id, 5)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        end_token_ids(tokenizer, tmp_path)


def test_stop_strings_that_are_special_tokens_stop_as_tokens(tokenizer: Any):
    stops = ("<|user|>", "\n\n", "fox")
    assert stop_token_ids(tokenizer, stops) == (tokenizer.convert_tokens_to_ids("<|user|>"),)


def test_upstreams_end_of_a_users_turn_comes_with_the_chat_template_alone(tokenizer: Any):
    shot = (user("one"), Message("assistant", "A"))
    asked = sample((), (shot,), (user("two"),))
    text = render(tokenizer, asked, Wording(True, user_turn_end="!"), 100).text
    assert text == "<s><|user|>one!</s><|assistant|>A</s><|user|>two!</s><|assistant|>"
    assert render(tokenizer, asked, Wording(False, user_turn_end="!"), 100).text == "one\nA\ntwo"
