"""Language models evaluated in this process: workers that count and can be killed, small data."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from evaluators.answers import Answer
from evaluators.predictions import write_predictions
from pipelines.language_benchmarks import OpenBenchmark, open_benchmark
from pipelines.language_command import evaluate_command
from pipelines.language_config import BackendSpec, BenchmarkSpec
from pipelines.language_evaluate import LanguageCandidate, answer_benchmarks
from pipelines.language_records import RecordInfo, write_info
from pipelines.output_files import write_json
from tests.benchmark_folders import write_gsm8k, write_mmlu
from tests.language_checkpoints import make_tiny_llama

TRANSFORMERS = BackendSpec(name="transformers", dtype="float32", device="cpu")


class Killed(BaseException):
    """The process ended here."""


class Here:
    """Workers that work in this process, count, and can be killed."""

    def __init__(self, *_: object) -> None:
        self.loaded: list[str] = []
        self.asked: list[str] = []
        self.killed_after = 1_000_000

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run_tasks(self, _name, tasks, _stage):
        return [task.function(*task.arguments) for task in tasks]

    def serve_models(self, stage, jobs, on_result, samples_of):
        for job in jobs:
            self.loaded.append(job.label)
            model = job.load(*job.arguments)
            for item in job.items:
                answers = job.work(model, item)
                if len(self.asked) + samples_of(item) > self.killed_after:
                    raise Killed
                self.asked += [answer.sample_id for answer in answers]
                on_result(job, item, answers)


def make_work(folder: Path, *, questions: int = 1) -> Path:
    """A small model, and data of MMLU (so many questions a subject) and GSM8K (six)."""
    make_tiny_llama(folder / "model")
    write_mmlu(folder / "data" / "mmlu", questions)
    write_gsm8k(folder / "data" / "gsm8k", 6)
    return folder


def copy_work(made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to change, in an environment of its own."""
    set_environment(folder, monkeypatch)
    return Path(shutil.copytree(made, folder / "work"))


def set_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No caches and no data but the test's own, and a wide terminal."""
    monkeypatch.setenv("NAN_MERGE_CACHE", str(folder / "hashes"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NAN_MERGE_DATA", raising=False)


def silent_console() -> Console:
    """A terminal that shows nothing and knows what was printed."""
    return Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: PTH123


def gsm8k(**more: object) -> BenchmarkSpec:
    """GSM8K with short answers."""
    return BenchmarkSpec.model_validate({"name": "gsm8k", "max_tokens": 8, **more})


def ask(work: Path, workers: Here, folder: str, *specs: BenchmarkSpec):
    """The records of the model's answers."""
    benchmarks = [open_benchmark(spec, work / "data") for spec in specs]
    candidate = LanguageCandidate("tiny", str(work / "model"), work / folder)
    return answer_benchmarks([candidate], benchmarks, TRANSFORMERS.options(), workers)  # type: ignore[arg-type]


def evaluate(work: Path, *specs: BenchmarkSpec, model: str = "model"):
    """What `nan-merge evaluate` finds and prints."""
    console = silent_console()
    scored = evaluate_command(
        str(work / model), specs, TRANSFORMERS, console, data=work / "data", output=work / "out"
    )
    return SimpleNamespace(scored=scored, text=console.export_text())


def keep_evaluation(
    folder: Path,
    opened: OpenBenchmark,
    data: Path,
    model: str,
    key: str,
    answers: Sequence[Answer],
) -> None:
    """A finished evaluation of one benchmark, as `nan-merge evaluate` leaves it."""
    name = opened.profile.benchmark
    info = RecordInfo(
        key=key,
        model=model,
        folder="",
        benchmark=name,
        profile=opened.profile.name,
        data=str(data),
        uses_chat_template=True,
        engine={},
        made_of={"data": opened.digest, "profile": "p"},
    )
    path = folder / "predictions" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_info(path, info)
    write_predictions(path, info.key, answers)
    write_json(folder / "scores.json", [{"key": info.key}])
