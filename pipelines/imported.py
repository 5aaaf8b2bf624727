"""Results of other harnesses as records of ours: answers, and beside them what was asked.

A record of ours finds its questions in the benchmark's data. An imported one brings them along, in
``NAME.questions.jsonl``, with the verdicts of the harness: no scorer of ours is applied to a prompt
that was not ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from evaluators.answers import Answer
from evaluators.predictions import read_predictions, write_predictions
from evaluators.profiles import Profile, Upstream, Verdict
from evaluators.samples import Sample
from nan_merge.errors import DataError
from nan_merge.fingerprint import digest_text
from pipelines.language_benchmarks import OpenBenchmark, find_profile, samples_digest
from pipelines.language_records import Record, RecordInfo, record_path, write_info

QUESTIONS_SUFFIX = ".questions.jsonl"


@dataclass(frozen=True)
class ImportedQuestion:
    """One sample of another harness, and its verdict.

    Attributes:
        sample_id: "SUBSET/NUMBER", as ours are called, so that the same questions pair.
        subset: Part of the benchmark.
        prompt: As it was sent, as far as it was written down.
        labels: Of the choices, if choices were compared.
        gold: The right answer, as the harness has it.
        extracted: What it took for the answer; None if it found none.
        is_correct: Its verdict.
        cluster_id: As `Sample.cluster_id`, where our own samples are known; else the sample's id.
    """

    sample_id: str
    subset: str
    prompt: str
    labels: tuple[str, ...]
    gold: str
    extracted: str | None
    is_correct: bool
    cluster_id: str = ""


@dataclass(frozen=True)
class ImportedBenchmark:
    """Everything that a harness wrote about one model on one benchmark.

    Attributes:
        harness: e.g. "lm-evaluation-harness 0.4.9".
        model: The model's name.
        benchmark: The benchmark's name.
        profile: What the harness calls its way of asking and scoring, e.g. a filter.
        questions: What was asked.
        answers: What was answered, in the same order.
    """

    harness: str
    model: str
    benchmark: str
    profile: str
    questions: Sequence[ImportedQuestion]
    answers: Sequence[Answer]


def clean(text: object) -> str:
    """A text of another's file; half a surrogate pair, which no file of ours can hold, goes."""
    return str(text).encode(errors="replace").decode()


def prompt_digest(prompt: str) -> str:
    """As `Answer.prompt_digest`."""
    return digest_text(clean(prompt))[:16]


def write_imported(found: ImportedBenchmark, folder: Path) -> Path:
    """Write a benchmark's answers, questions and description; returns the record's path.

    Raises:
        OutputError: If the disk is full or not writable.
    """
    made_of = {
        "harness": found.harness,
        "model": found.model,
        "data": questions_digest(found.questions),
        "answers": digest_text(json.dumps([asdict(answer) for answer in found.answers])),
    }
    info = RecordInfo(
        key=digest_text(json.dumps(made_of, sort_keys=True)),
        model=found.model,
        folder="",
        benchmark=found.benchmark,
        profile=found.profile,
        data="",
        uses_chat_template=False,
        engine={"harness": found.harness},
        made_of=made_of,
        source=found.harness,
    )
    return write_with_questions(record_path(folder, info), info, found)


def write_with_questions(path: Path, info: RecordInfo, found: ImportedBenchmark) -> Path:
    """Write a record that brings its questions along; the answers last, which make it whole."""
    write_info(path, info)
    write_predictions(path.with_suffix(QUESTIONS_SUFFIX), info.key, found.questions)
    write_predictions(path, info.key, found.answers)
    return path


def questions_digest(questions: Sequence[ImportedQuestion]) -> str:
    """What `RecordInfo.made_of` says of them under "data"."""
    return samples_digest([_sample(question) for question in questions])


def imported_benchmark(record: Record) -> OpenBenchmark:
    """The benchmark that an imported record answers; its scorer repeats the harness' verdicts.

    Raises:
        DataError: If the questions are missing or damaged.
    """
    path = record.path.with_suffix(QUESTIONS_SUFFIX)
    questions = {each.sample_id: each for each in read_predictions(path, ImportedQuestion)}
    samples = tuple(_sample(question) for question in questions.values())

    def repeat(sample: Sample, _answer: Answer) -> Verdict:
        question = questions[sample.id]
        return Verdict(question.extracted, question.is_correct)

    info = record.info
    # Where a profile of ours was asked by another engine, what its averages are over is known.
    asked_as = info.engine.get("profile")
    known = find_profile(info.benchmark, str(asked_as)) if asked_as else None
    subsets = tuple(dict.fromkeys(sample.subset for sample in samples))
    profile = Profile(
        benchmark=info.benchmark,
        name=info.profile,
        upstream=Upstream(info.source, "", ""),
        samples=lambda _folder: list(samples),
        decoding=None,
        uses_chat_template=False,
        scorers={"compat": repeat},
        subsets=known.subsets if known else subsets,
        groups=known.groups if known else {},
    )
    return OpenBenchmark(
        named=info.benchmark,
        profile=profile,
        folder=path,
        samples=samples,
        asked=frozenset(questions),
        digest=samples_digest(samples),
        uses_chat_template=False,
    )


def refuse_repeated_ids(questions: Iterable[ImportedQuestion], place: str) -> None:
    """Raise `DataError` if an id comes twice."""
    seen: set[str] = set()
    for question in questions:
        if question.sample_id in seen:
            raise DataError(
                f"{place}: sample {question.sample_id} comes twice. Are there results of several "
                "runs in the folder? Import each by itself."
            )
        seen.add(question.sample_id)


def _sample(question: ImportedQuestion) -> Sample:
    return Sample(
        id=question.sample_id,
        cluster_id=question.cluster_id or question.sample_id,
        subset=question.subset,
        lead="",
        shots=(),
        question=question.prompt,
        choices=question.labels,
        labels=question.labels,
        gold=question.gold,
    )
