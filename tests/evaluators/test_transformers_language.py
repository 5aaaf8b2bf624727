import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evaluators.backends.token_batches import batches, group_by_prefix
from evaluators.backends.transformers_language import TransformersLanguageModel, open_transformers
from evaluators.profiles import Decoding
from evaluators.rendering import Wording, encode, load_tokenizer
from nan_merge.errors import CheckpointError, EvaluationError
from tests.language_checkpoints import make_tiny_llama

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (requirements/peers.txt)"
)

TEXTS = ["the quick", "Question one two three. Answer:", "fox", "the lazy dog and the fox jumps"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def prompts(folder: Path) -> list[list[int]]:
    return encode(load_tokenizer(folder), TEXTS, Wording(uses_chat_template=False))


@pytest.fixture(scope="module")
def model(folder: Path) -> TransformersLanguageModel:
    return open_transformers(folder, dtype="float32", device="cpu")


def plain_log_probabilities(folder: Path, prompt: list[int]) -> torch.Tensor:
    """Of all next tokens at every place, one prompt at a time and without any padding."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return plain(input_ids=torch.tensor([prompt])).logits[0].log_softmax(dim=-1)


def test_next_tokens_of_a_batch_are_those_of_each_prompt(
    model: TransformersLanguageModel, folder: Path, prompts: list[list[int]]
):
    ids = [[7, 300], [8], [9, 10, 11], [250, 7]]
    found = model.next_token_log_probabilities(prompts, ids)
    for prompt, tokens, row in zip(prompts, ids, found, strict=True):
        expected = plain_log_probabilities(folder, prompt)[-1][tokens]
        assert row == pytest.approx(expected.tolist(), abs=1e-5)


def test_continuations_are_summed_over_their_tokens(
    model: TransformersLanguageModel, folder: Path, prompts: list[list[int]]
):
    endings = [[20, 30], [40], [50, 60, 70, 80], [90, 12]]
    found = model.log_likelihoods(prompts, endings)
    for prompt, ending, value in zip(prompts, endings, found, strict=True):
        rows = plain_log_probabilities(folder, prompt + ending)
        at = len(prompt) - 1
        expected = sum(float(rows[at + n, token]) for n, token in enumerate(ending))
        assert value == pytest.approx(expected, abs=1e-4)


def test_a_prefix_computed_once_changes_nothing(folder: Path):
    generator = torch.Generator().manual_seed(0)
    draw = lambda length: torch.randint(6, 300, (length,), generator=generator).tolist()  # noqa: E731
    shots = [draw(120), draw(90)]
    rows = [shots[n % 2] + draw(5 + n) for n in range(9)] + [draw(30)]
    ids = [[7, 100, 200]] * len(rows)
    once = open_transformers(folder, dtype="float32", device="cpu", batch_tokens=400)
    each = open_transformers(folder, dtype="float32", device="cpu", reuse_prefixes=False)
    for one, other in zip(
        once.next_token_log_probabilities(rows, ids),
        each.next_token_log_probabilities(rows, ids),
        strict=True,
    ):
        assert one == pytest.approx(other, abs=1e-5)
    endings = [draw(1 + n % 4) for n in range(len(rows))]
    assert once.log_likelihoods(rows, endings) == pytest.approx(
        each.log_likelihoods(rows, endings), abs=1e-4
    )


def test_prefixes_are_found_wherever_their_prompts_stand():
    rows = [[1] * 40 + [2], [3] * 50 + [4], [1] * 40 + [5], [3] * 50 + [6, 7], [8]]
    groups = group_by_prefix(rows, [1] * 5, 32)
    assert [(group.places, group.num_shared) for group in groups] == [
        ((0, 2), 40),
        ((1, 3), 50),
        ((4,), 0),
    ]
    assert group_by_prefix(rows[:1] * 2, [3, 3], 32)[0].num_shared == 38  # the end is asked for


def test_batches_stay_within_their_tokens():
    assert list(batches(range(5), [10, 40, 10, 30, 5], 40)) == [[1], [3], [0, 2, 4]]


def test_answers_of_a_batch_are_those_of_each_prompt(
    model: TransformersLanguageModel, folder: Path, prompts: list[list[int]]
):
    """Against transformers' own greedy search, one prompt at a time."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(folder)
    written = model.generate(prompts, Decoding(24))
    for prompt, completion in zip(prompts, written, strict=True):
        ids = torch.tensor([prompt])
        whole = plain.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )[0]
        new = whole[len(prompt) :].tolist()
        text = tokenizer.decode(new, skip_special_tokens=True)
        assert completion.text == text.rstrip("\ufffd")
        assert completion.num_tokens == len(new)
        assert completion.finish_reason == (
            "stop" if new[-1] == tokenizer.eos_token_id else "length"
        )


def test_a_stop_string_ends_an_answer_and_is_not_part_of_it(
    model: TransformersLanguageModel, prompts: list[list[int]]
):
    free = model.generate(prompts, Decoding(24))
    stops = (free[0].text[6:9], free[1].text[4:6])
    for before, after in zip(free, model.generate(prompts, Decoding(24, stops)), strict=True):
        places = [before.text.find(stop) for stop in stops if stop in before.text]
        if places:
            assert (after.text, after.finish_reason) == (before.text[: min(places)], "stop")
            assert after.num_tokens < before.num_tokens or min(places) > 0
        else:
            assert after == before


def test_an_answer_may_be_empty(model: TransformersLanguageModel, prompts: list[list[int]]):
    first = model.generate(prompts[:1], Decoding(1))[0].text
    (empty,) = model.generate(prompts[:1], Decoding(9, (first,)))
    assert (empty.text, empty.finish_reason, empty.num_tokens) == ("", "stop", 1)


def test_an_answer_is_cut_off_at_the_end_of_the_context(folder: Path, prompts: list[list[int]]):
    length = len(prompts[0]) + 3
    short = open_transformers(folder, dtype="float32", device="cpu", max_length=length)
    (cut,) = short.generate(prompts[:1], Decoding(24))
    assert (cut.finish_reason, cut.num_tokens) == ("length", 3)
    with pytest.raises(EvaluationError, match=f"context of {length} tokens"):
        short.generate([prompts[0] + [7, 7, 7]], Decoding(1))


def test_generation_config_does_not_change_the_answers(
    folder: Path, tmp_path: Path, prompts: list[list[int]], model: TransformersLanguageModel
):
    other = make_tiny_llama(tmp_path / "model")
    (other / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0})
    )
    changed = open_transformers(other, dtype="float32", device="cpu")
    assert changed.generate(prompts, Decoding(16)) == model.generate(prompts, Decoding(16))


def test_a_token_that_generation_config_names_ends_an_answer(
    tmp_path: Path, prompts: list[list[int]], model: TransformersLanguageModel
):
    other = make_tiny_llama(tmp_path / "model")
    tokenizer = load_tokenizer(other)
    text = model.generate(prompts[:1], Decoding(8))[0].text
    third = tokenizer(text, add_special_tokens=False)["input_ids"][2]
    (other / "generation_config.json").write_text(json.dumps({"eos_token_id": [third]}))
    (ended,) = open_transformers(other, dtype="float32", device="cpu").generate(
        prompts[:1], Decoding(8)
    )
    assert ended.finish_reason == "stop" and ended.num_tokens <= 3
    assert tokenizer.decode([third]) not in ended.text


def test_a_tokenizer_without_a_pad_token_will_do(
    tmp_path: Path, prompts: list[list[int]], model: TransformersLanguageModel
):
    bare = open_transformers(
        make_tiny_llama(tmp_path / "model", pad=False), dtype="float32", device="cpu"
    )
    assert bare.generate(prompts, Decoding(8)) == model.generate(prompts, Decoding(8))


def test_bfloat16_is_near_float32(folder: Path, model: TransformersLanguageModel, prompts):
    narrow = open_transformers(folder, dtype="bfloat16", device="cpu")
    ids = [[7, 300]] * len(prompts)
    for one, other in zip(
        narrow.next_token_log_probabilities(prompts, ids),
        model.next_token_log_probabilities(prompts, ids),
        strict=True,
    ):
        assert one == pytest.approx(other, abs=0.2)
        assert one != other


def damage(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_weights_that_are_not_numbers_give_no_answers(tmp_path: Path, prompts: list[list[int]]):
    broken = make_tiny_llama(tmp_path / "model")
    damage(broken, lambda tensors: tensors["model.norm.weight"].fill_(math.nan))
    model = open_transformers(broken, dtype="float32", device="cpu")
    with pytest.raises(EvaluationError, match="logits are not numbers"):
        model.generate(prompts, Decoding(4))
    rows = model.next_token_log_probabilities(prompts[:1], [[7, 8]])
    assert all(math.isnan(value) for value in rows[0])
    assert math.isnan(model.log_likelihoods(prompts[:1], [[7, 8]])[0])


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path):
    broken = make_tiny_llama(tmp_path / "model")
    damage(broken, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"1 tensors are missing.*model\.layers\.1\.mlp\.up"):
        open_transformers(broken, dtype="float32", device="cpu")


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    broken = make_tiny_llama(tmp_path / "model")
    (broken / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded by transformers"):
        open_transformers(broken, dtype="float32", device="cpu")


def test_nothing_cannot_be_scored(model: TransformersLanguageModel):
    with pytest.raises(EvaluationError, match="without tokens"):
        model.log_likelihoods([[1, 2]], [[]])
    with pytest.raises(EvaluationError, match="without tokens"):
        model.next_token_log_probabilities([[]], [[1]])
    assert model.generate([], Decoding(3)) == []
