"""`engine: opencompass`: what it can ask, who runs it, and its results as records of ours.

Its prompts, extractions and verdicts are its own. So its records have a profile of their own, named
after its configuration, and never stand for those of a profile that this project asks itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluators.answers import Answer
from evaluators.benchmarks import PROFILES
from evaluators.opencompass import ask_by_opencompass, opencompass_version
from evaluators.opencompass_config import PREFIXES, OpenCompassBenchmark
from evaluators.opencompass_files import RUN, is_finished, read_summary
from evaluators.predictions import read_key
from nan_merge.errors import ConfigError, DataError
from nan_merge.fingerprint import digest_text
from nan_merge.hub import resolve_folder
from nan_merge.tasks import Task
from pipelines.import_opencompass import ROUNDING, read_opencompass
from pipelines.imported import ImportedBenchmark, questions_digest, write_with_questions
from pipelines.language_benchmarks import OpenBenchmark
from pipelines.language_config import BackendSpec, EngineSpec
from pipelines.language_evaluate import LanguageCandidate
from pipelines.language_records import (
    Record,
    RecordInfo,
    engine_identity,
    model_identity,
    read_record,
    record_path,
)
from pipelines.opencompass_profiles import asked_by_subset
from pipelines.run_folder import slug
from pipelines.workers import Workers

PYTHON_VARIABLE = "NAN_MERGE_OPENCOMPASS"
DEFAULT_PYTHON = Path(".venv-opencompass/bin/python")


def interpreter(engine: EngineSpec) -> Path:
    """Of the environment with OpenCompass; not what it links to, which has no OpenCompass."""
    named = engine.python or os.environ.get(PYTHON_VARIABLE) or DEFAULT_PYTHON
    return Path(named).absolute()


def check_opencompass(engine: EngineSpec, backend: BackendSpec) -> str:
    """See that it could run; returns its version.

    Raises:
        ConfigError: If the backend has no server.
        EvaluationError: If there is no OpenCompass.
    """
    if backend.name != "vllm":
        raise ConfigError(
            f"engine: opencompass asks a server of the model, and backend: {backend.name} has "
            "none. Use backend: vllm, or engine: nan-merge."
        )
    return opencompass_version(interpreter(engine))


def answer_by_opencompass(
    candidates: Sequence[LanguageCandidate],
    benchmarks: Sequence[OpenBenchmark],
    engine: EngineSpec,
    backend: BackendSpec,
    kept: Path,
    workers: Workers,
) -> dict[tuple[str, str], Record]:
    """Records by (candidate's name, `OpenBenchmark.name`), as `answer_benchmarks`.

    A benchmark of a model that is finished is not asked again; an unfinished one goes on.

    Args:
        candidates: The models.
        benchmarks: From `asked_by_opencompass`.
        engine: How OpenCompass is run.
        backend: What the models run on.
        kept: Folder for the folders of OpenCompass, one for each model and benchmark.
        workers: Where it runs.

    Raises:
        ConfigError: As `check_opencompass`.
        EvaluationError: As `check_opencompass` and `ask_by_opencompass`.
        DataError: If its results are not those of what was asked.
    """
    version = check_opencompass(engine, backend)
    jobs: list[_Job] = []
    for candidate in candidates:
        folder = resolve_folder(candidate.folder)
        model = (folder, model_identity(folder))
        jobs += [_job(candidate, each, model, backend, version, kept) for each in benchmarks]
    _run([job for job in jobs if not job.is_recorded], engine, backend, workers)
    for job in jobs:
        if not job.is_recorded:
            _record(job)
    return {
        (job.record.info.model, job.benchmark.name): read_record(job.record.path) for job in jobs
    }


@dataclass(frozen=True)
class _Job:
    """One benchmark asked of one model."""

    record: Record
    benchmark: OpenBenchmark
    asked: OpenCompassBenchmark

    @property
    def is_recorded(self) -> bool:
        return read_key(self.record.path) == self.record.info.key


def _job(
    candidate: LanguageCandidate,
    benchmark: OpenBenchmark,
    model: tuple[Path, Mapping[str, str]],
    backend: BackendSpec,
    version: str,
    kept: Path,
) -> _Job:
    folder, identity = model
    profile = benchmark.profile
    assert profile.decoding is not None, "checked before anything ran"
    (own,) = (
        each.name
        for (name, _), each in PROFILES.items()
        if name == profile.benchmark and each.upstream == profile.upstream
    )
    engine: dict[str, Any] = {
        "harness": f"OpenCompass {version}",
        "profile": own,
        "config": profile.upstream.file,
        "max_tokens": profile.decoding.max_tokens,
        **engine_identity(backend.options()),
    }
    made_of: dict[str, Any] = {
        "model": dict(identity),
        "asked": [benchmark.digest, digest_text(json.dumps(sorted(benchmark.asked)))],
        "engine": engine,
    }
    info = RecordInfo(
        key=digest_text(json.dumps(made_of, sort_keys=True)),
        model=candidate.name,
        folder=str(folder),
        benchmark=profile.benchmark,
        profile=profile.name,
        data=str(benchmark.folder.absolute()),
        uses_chat_template=True,
        engine=engine,
        made_of=made_of,
        source=f"OpenCompass {version}",
    )
    path = record_path(candidate.predictions, info)
    asked = OpenCompassBenchmark(
        benchmark=profile.benchmark,
        config=profile.upstream.file,
        data=info.data,
        num_asked={subset: len(samples) for subset, samples in asked_by_subset(benchmark).items()},
        max_tokens=profile.decoding.max_tokens,
        model=slug(candidate.name),
        work=str((kept / f"{slug(candidate.name)}.{path.stem}").absolute()),
    )
    return _Job(Record(path, info), benchmark, asked)


def _run(jobs: Sequence[_Job], engine: EngineSpec, backend: BackendSpec, workers: Workers) -> None:
    by_model: dict[str, list[OpenCompassBenchmark]] = {}
    names: dict[str, str] = {}
    for job in jobs:
        if not is_finished(job.asked):
            Path(job.asked.work).mkdir(parents=True, exist_ok=True)
            by_model.setdefault(job.record.info.folder, []).append(job.asked)
            names[job.record.info.folder] = job.record.info.model
    python, options = str(interpreter(engine)), backend.options()
    tasks = [
        Task(
            f"OpenCompass asks {names[folder]}",
            ask_by_opencompass,
            (folder, python, asked, options, engine.requests, engine.silence_seconds),
            cost=0,
        )
        for folder, asked in by_model.items()
    ]
    title = f"OpenCompass asks {len(tasks)} model{'s' * (len(tasks) != 1)}"
    workers.run_tasks(title, tasks, "evaluate")


def _record(job: _Job) -> None:
    """Take what OpenCompass wrote into a record."""
    (found,) = read_opencompass(Path(job.asked.work) / RUN)
    found = _as_asked(found, job)
    _refuse_another_summary(found, job.asked)
    info = job.record.info
    whole = {**info.made_of, "data": questions_digest(found.questions)}
    write_with_questions(job.record.path, replace(info, made_of=whole), found)


def _as_asked(found: ImportedBenchmark, job: _Job) -> ImportedBenchmark:
    """The results with the ids and clusters of our samples, of which they must be, in order."""
    samples = asked_by_subset(job.benchmark)
    place: dict[str, int] = dict.fromkeys(samples, 0)
    questions, answers = [], list[Answer]()
    for question, answer in zip(found.questions, found.answers, strict=True):
        subset = question.subset
        number = place.get(subset, 0)
        sample = samples[subset][number] if number < len(samples.get(subset, ())) else None
        if sample is None or not question.gold.rstrip().endswith(sample.gold):
            raise DataError(
                f"{job.asked.work}: sample {number} of {subset} is not the one that was asked "
                f"({question.gold!r} is its right answer). Remove the folder and run again."
            )
        place[subset] = number + 1
        questions.append(replace(question, sample_id=sample.id, cluster_id=sample.cluster_id))
        answers.append(replace(answer, sample_id=sample.id))
    return replace(found, questions=questions, answers=answers)


def _refuse_another_summary(found: ImportedBenchmark, asked: OpenCompassBenchmark) -> None:
    """Raise `DataError` if a score of OpenCompass' summary is not that of the verdicts read."""
    summary, right = read_summary(asked), dict[str, list[bool]]()
    for question in found.questions:
        right.setdefault(f"{PREFIXES[asked.benchmark]}{question.subset}", []).append(
            question.is_correct
        )
    for dataset, verdicts in right.items():
        share = 100 * sum(verdicts) / len(verdicts)
        if abs(summary.get(dataset, -1) - share) > ROUNDING:
            raise DataError(
                f"{asked.work}: OpenCompass' summary says {summary.get(dataset, 'nothing')} for "
                f"{dataset}, and its verdicts on the samples {share:.2f}. Remove the folder and "
                "run again."
            )
