import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluators.language_evaluation import (
    LanguageModelOptions,
    LanguageShard,
    OpenLanguageModel,
    answer_shard,
    language_shards,
    open_language_model,
)
from evaluators.profiles import Decoding, Profile, Upstream, Verdict
from evaluators.rendering import Wording
from evaluators.samples import Message, Sample
from nan_merge.errors import EvaluationError
from tests.language_checkpoints import make_tiny_llama

pytest.importorskip("transformers", reason="transformers is not installed (requirements/peers.txt)")

OPTIONS = LanguageModelOptions(backend="transformers", dtype="float32", device="cpu")
TEXT, CHAT = Wording(uses_chat_template=False), Wording(uses_chat_template=True)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenLanguageModel:
    folder = make_tiny_llama(tmp_path_factory.mktemp("tiny") / "model", length=64)
    return open_language_model(str(folder), OPTIONS)


def sample(name: str, question: str, choices: tuple[str, ...] = ()) -> Sample:
    return Sample(
        name, name, name.split("/")[0], "", ("one two. ",), question, choices, choices, "A"
    )


def shard(samples: list[Sample], decoding: Decoding | None, wording: Wording) -> LanguageShard:
    return LanguageShard("test/any", 0, tuple(samples), decoding, wording)


def profile(decoding: Decoding | None) -> Profile:
    return Profile(
        benchmark="mmlu",
        name="any",
        upstream=Upstream("nobody/nothing", "none.py", "0"),
        samples=lambda _: [],
        decoding=decoding,
        uses_chat_template=True,
        scorers={"compat": lambda _sample, _answer: Verdict(None, False)},
        subsets=("law", "art"),
        text_separator="\n\n",
    )


def test_samples_of_one_prefix_share_a_shard():
    samples = [sample(f"{subset}/{n}", "fox") for n in range(3) for subset in ("law", "art")]
    shards = language_shards(profile(Decoding(4)), samples, num_samples=4)
    assert [[each.id for each in shard.samples] for shard in shards] == [
        ["law/0", "law/1", "law/2"],
        ["art/0", "art/1", "art/2"],
    ]
    assert str(shards[1]) == "mmlu/any, shard 1" and shards[1].num_samples == 3
    assert shards[0].wording == Wording(True, "\n\n")
    plain = language_shards(profile(None), samples, uses_chat_template=False)
    assert not plain[0].wording.uses_chat_template


def test_what_goes_to_an_actor_and_back_can_be_pickled(opened: OpenLanguageModel):
    samples = [sample("law/0", "fox", ("X", "Y"))]
    (sent,) = language_shards(profile(None), samples, uses_chat_template=False)
    load: Callable[..., Any]
    load, work, options, arrived = pickle.loads(
        pickle.dumps((open_language_model, answer_shard, OPTIONS, sent))
    )
    assert load is open_language_model and options == OPTIONS
    answers = work(opened, arrived)
    assert pickle.loads(pickle.dumps(answers)) == answers == answer_shard(opened, sent)


def test_choices_are_compared_in_the_order_of_the_samples(opened: OpenLanguageModel):
    questions = ["fox ", "the lazy dog jumps over ", "Question one "]
    samples = [sample(f"law/{n}", text, ("X", "Y")) for n, text in enumerate(questions)]
    answers = answer_shard(opened, shard(samples, None, TEXT))
    assert [answer.sample_id for answer in answers] == ["law/0", "law/1", "law/2"]
    for one, answer in zip(samples, answers, strict=True):
        (alone,) = answer_shard(opened, shard([one], None, TEXT))
        assert answer.log_probabilities == pytest.approx(alone.log_probabilities, abs=1e-5)
        assert len(answer.log_probabilities) == 2 and answer.completion == ""


def test_answers_are_written_and_counted(opened: OpenLanguageModel):
    asked = sample("law/0", "fox")
    (answer,) = answer_shard(opened, shard([asked], Decoding(5), TEXT))
    assert (answer.sample_id, answer.num_tokens) == ("law/0", 5)
    assert (answer.finish_reason, answer.log_probabilities) == ("length", ())
    assert answer.completion and len(answer.prompt_digest) == 16
    assert answer.num_prompt_tokens == len(opened.tokenizer("one two. fox")["input_ids"]) - 1


def test_a_prompt_that_is_too_long_is_an_abstention_and_the_others_are_answered(
    opened: OpenLanguageModel, caplog: pytest.LogCaptureFixture
):
    long = "X" * 70
    samples = [sample("law/0", long, ("X", "Y")), sample("law/1", "fox", ("X", "Y"))]
    with caplog.at_level(logging.WARNING):
        answers = answer_shard(opened, shard(samples, None, TEXT))
        written = answer_shard(opened, shard(samples, Decoding(4), TEXT))
    assert answers[0].log_probabilities == (None, None)
    assert None not in answers[1].log_probabilities
    assert (written[0].completion, written[0].finish_reason, written[0].num_tokens) == (
        "",
        "length",
        0,
    )
    assert written[0].num_prompt_tokens > 64 and written[0].num_dropped_shots == 1
    assert written[1].num_tokens > 0
    assert caplog.messages[0] == (
        "test/any, shard 0: 1 of 2 prompts are empty or longer than 64 tokens, the model's "
        "context, even without solved examples; they count as abstentions."
    )


def test_messages_go_through_the_chat_template(opened: OpenLanguageModel):
    asked = Sample("a", "a", "a", (), (), (Message("user", "fox"),), (), (), "A")
    (chat,) = answer_shard(opened, shard([asked], Decoding(4), CHAT))
    (text,) = answer_shard(opened, shard([asked], Decoding(4), TEXT))
    assert chat.prompt_digest != text.prompt_digest
    assert chat.num_prompt_tokens > text.num_prompt_tokens


def test_a_missing_chat_template_is_an_error_not_another_prompt(tmp_path: Path):
    folder = make_tiny_llama(tmp_path / "model", chat=False)
    bare = open_language_model(str(folder), OPTIONS)
    asked = sample("law/0", "fox")
    with pytest.raises(EvaluationError, match="has no chat template"):
        answer_shard(bare, shard([asked], Decoding(4), CHAT))
    assert answer_shard(bare, shard([asked], Decoding(4), TEXT))[0].num_tokens == 4
    bare.close()
