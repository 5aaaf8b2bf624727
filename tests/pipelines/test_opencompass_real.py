"""OpenCompass itself on a server of a tiny model: what it asked and judged, and our profiles."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console

from evaluators.answers import Answer
from evaluators.benchmarks import PROFILES
from evaluators.predictions import read_predictions
from evaluators.samples import Message, Sample
from evaluators.torchvision_repair import repair
from pipelines.imported import QUESTIONS_SUFFIX, ImportedQuestion
from pipelines.language_command import evaluate_command
from pipelines.language_config import BackendSpec, BenchmarkSpec, EngineSpec
from pipelines.language_records import find_records
from pipelines.opencompass_engine import interpreter
from tests.benchmark_folders import write_bbh, write_gsm8k, write_mmlu
from tests.language_checkpoints import make_tiny_llama

repair()
ENGINE = EngineSpec(name="opencompass")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not interpreter(ENGINE).is_file(),
        reason="there is no environment with OpenCompass (make opencompass-engine)",
    ),
    pytest.mark.skipif(
        any(find_spec(name) is None for name in ("vllm", "ray", "transformers")),
        reason="vLLM, Ray or transformers is not installed",
    ),
]
SPECS = [
    BenchmarkSpec(name="gsm8k", max_tokens=16),
    BenchmarkSpec(name="mmlu", subsets=("anatomy", "virology"), max_tokens=8),
    BenchmarkSpec(name="mmlu", profile="oc-gen-0shot", subsets=("anatomy",), max_tokens=8),
    BenchmarkSpec(name="bbh", subsets=("navigate", "snarks"), max_tokens=16),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("opencompass")
    make_tiny_llama(folder / "model", length=16384)
    for write in (write_gsm8k, write_mmlu, write_bbh):
        write(folder / "data" / write.__name__.removeprefix("write_"))
    with (folder / "printed").open("w") as file:
        evaluate_command(
            str(folder / "model"),
            SPECS,
            BackendSpec(dtype="float32", kv_cache_gib=1),
            Console(file=file),
            data=folder / "data",
            output=folder / "out",
            engine=ENGINE,
        )
    return folder


def records(results: Path):
    for record in find_records(results / "out"):
        info = record.info
        profile = PROFILES[info.benchmark, info.engine["profile"]]
        samples = {each.id: each for each in profile.samples(Path(info.data))}
        questions = read_predictions(record.path.with_suffix(QUESTIONS_SUFFIX), ImportedQuestion)
        yield profile, samples, questions, record.answers()


def test_it_asks_all_that_was_wanted(results: Path):
    scores = json.loads((results / "out" / "scores.json").read_text())
    assert {each["profile"]: each["micro"]["num_samples"] for each in scores} == {
        "opencompass:gsm8k_gen_1d7fe4": 2,
        "opencompass:mmlu_gen_4d595a": 4,
        "opencompass:mmlu_openai_simple_evals_gen_b618ea": 2,
        "opencompass:bbh_gen_5b92b0": 2,
    }
    assert {each["source"].split()[0] for each in scores} == {"OpenCompass"}


def turns(sample: Sample) -> str:
    pieces = [*sample.shots, sample.question]
    roles = {"user": "HUMAN", "assistant": "BOT"}
    messages = [each for piece in pieces for each in piece if isinstance(each, Message)]
    return "\n".join(f"{roles[each.role]}: {each.content}" for each in messages)


def test_its_prompts_are_those_of_our_profiles_turn_by_turn(results: Path):
    for profile, samples, questions, _ in records(results):
        if profile.benchmark != "bbh":  # whose solved examples are OpenCompass' own
            for question in questions:
                assert question.prompt == turns(samples[question.sample_id]), question.sample_id


def test_its_verdicts_are_those_of_our_compat_scorers(results: Path):
    for profile, samples, questions, answers in records(results):
        assert any(answer.completion for answer in answers)
        for question, answer in zip(questions, answers, strict=True):
            written = Answer(answer.sample_id, "", answer.completion, "stop")
            ours = profile.scorers["compat"](samples[question.sample_id], written)
            assert ours.is_correct == question.is_correct, question.sample_id


def test_its_folders_say_what_was_asked_and_hold_no_key(results: Path):
    folders = sorted((results / "out" / "opencompass").iterdir())
    assert len(folders) == len(SPECS)
    for folder in folders:
        assert list((folder / "run" / "summary").glob("summary_*.csv"))
        for path in [folder / "config.py", *(folder / "run" / "configs").iterdir()]:
            assert "key='ENV'" in path.read_text().replace('"', "'")
