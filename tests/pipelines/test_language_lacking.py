"""Language models that lack something: a template, a tokenizer, numbers, room for the prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from evaluators.torchvision_repair import repair
from nan_merge.errors import CheckpointError, EvaluationError
from pipelines import language_command
from pipelines.cli import app
from pipelines.language_config import BenchmarkSpec
from tests.language_checkpoints import make_tiny_llama
from tests.language_evaluations import Here, copy_work, evaluate, gsm8k, make_work

repair()
pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_work(tmp_path_factory.mktemp("made"))


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copy_work(made, tmp_path, monkeypatch)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Here:
    here = Here()
    monkeypatch.setattr(language_command, "Workers", lambda *_: here)
    return here


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of few samples, so that there are many."""
    from pipelines import language_evaluate

    real = language_evaluate.language_shards
    monkeypatch.setattr(
        language_evaluate, "language_shards", lambda *a, **k: real(*a, **k, num_samples=2)
    )


def test_a_model_without_a_chat_template_is_told_so_and_can_be_asked_without(work, workers):
    make_tiny_llama(work / "plain", chat=False)
    spec = {"name": "mmlu", "profile": "oc-gen-5shot", "limit": 1, "max_tokens": 2}
    with pytest.raises(EvaluationError, match=r"has no chat template.*--no-chat-template"):
        evaluate(work, BenchmarkSpec.model_validate(spec), model="plain")
    assert workers.loaded == []
    spec["chat_template"] = False
    found = evaluate(work, BenchmarkSpec.model_validate(spec), model="plain")
    assert found.scored[0].scores.micro.num_samples == 57


def test_a_model_without_a_tokenizer_is_told_so_before_it_is_loaded(work, workers):
    for path in (work / "model").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"its tokenizer cannot be loaded.*Copy the tok"):
        evaluate(work, gsm8k())
    assert workers.loaded == []


def damage(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_choices_of_a_model_whose_logits_are_not_numbers_are_abstentions(work, workers):
    damage(work / "model")
    found = evaluate(work, BenchmarkSpec(name="mmlu"))
    assert found.scored[0].scores.abstain_rate == 1.0
    assert found.scored[0].scores.micro.value == 0
    assert "57 samples have no answer at all" in found.text
    line = next(line for line in found.text.splitlines() if "mmlu oc-ppl (compat)" in line)
    assert line.split()[-2:] == ["100.0", "0.0"]
    shown = CliRunner().invoke(app, ["predictions", "show", str(work / "out"), "--limit", "1"])
    assert "log-probabilities: A not a number" in shown.output
    assert "extracted: (none found: an abstention)" in shown.output


def test_an_answer_of_logits_that_are_not_numbers_is_an_error_that_names_the_model(
    work, workers, few
):
    damage(work / "model")
    with pytest.raises(EvaluationError) as error:
        evaluate(work, BenchmarkSpec(name="mmlu"), gsm8k())
    assert str(error.value).startswith(
        f"{work / 'model'}, gsm8k/qwen25-math-cot, shard 0: The model's logits are not numbers"
    )
    assert len(workers.asked) == 57  # what was answered before is kept


def test_a_tokenizer_without_a_pad_token_gives_the_same_scores(work, workers):
    make_tiny_llama(work / "bare", pad=False)
    specs = (BenchmarkSpec(name="mmlu", limit=1), gsm8k())
    one, other = evaluate(work, *specs).scored, evaluate(work, *specs, model="bare").scored
    assert [each.scores for each in one] == [each.scores for each in other]


def test_a_context_that_is_too_short_drops_shots_and_says_so(work, workers):
    make_tiny_llama(work / "short", length=400)
    found = evaluate(work, BenchmarkSpec(name="mmlu", limit=1), model="short")
    assert found.scored[0].scores.num_dropped_shots > 57
    assert "solved examples were left out" in found.text
    assert found.scored[0].scores.num_missing == 0


@pytest.mark.parametrize("name", ["mmlu", "gsm8k"])
def test_prompts_that_do_not_fit_at_all_are_counted_as_wrong_and_told(work, workers, name):
    make_tiny_llama(work / "short", length=12)
    found = evaluate(work, BenchmarkSpec(name=name, limit=1), model="short")
    scores = found.scored[0].scores
    assert scores.num_missing == scores.micro.num_samples
    assert (scores.micro.value, scores.abstain_rate) == (0, 1)
    assert f"{scores.num_missing} samples have no answer at all and count as wrong" in found.text
