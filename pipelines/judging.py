"""Ask a judge about answers in which the rules find none; keep and find again what it wrote.

What a judge wrote is a record like those of answers, in ``FOLDER/judges/NAME``, under a key of the
judge's weights, tokenizer and engine, of the request and of the record that it read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evaluators.answers import Answer
from evaluators.data_check import PICTURE_BENCHMARKS
from evaluators.judge import (
    EXTRACTION,
    count_readings,
    extraction_profile,
    is_left_open,
    judged_profile,
    request_of,
    requests_digest,
)
from evaluators.predictions import read_key, write_predictions
from evaluators.rendering import load_tokenizer
from evaluators.samples import Sample
from nan_merge.config_messages import did_you_mean
from nan_merge.errors import DataError
from nan_merge.fingerprint import digest_text
from nan_merge.hub import resolve_folder
from pipelines.language_benchmarks import OpenBenchmark
from pipelines.language_config import BackendSpec
from pipelines.language_evaluate import LanguageCandidate, answer_benchmarks
from pipelines.language_records import OWN_SOURCE, Record, write_info
from pipelines.run_folder import slug
from pipelines.workers import Workers

JUDGES_FOLDER = "judges"
Opened = Sequence[tuple[Record, OpenBenchmark]]


@dataclass(frozen=True)
class JudgeSpec:
    """Which judge is asked, and what it runs on.

    Attributes:
        model: Checkpoint folder or hub id.
        backend: What it runs on.
    """

    model: str
    backend: BackendSpec

    @property
    def name(self) -> str:
        """What scores with it are called after."""
        last = self.model.rstrip("/").rpartition("/")[2]
        return Path(self.model).resolve().name if last in ("", ".", "..") else last


def can_be_judged(record: Record, benchmark: OpenBenchmark) -> bool:
    """Whether a judge may read a record: our own questions about pictures, answered in writing."""
    is_own = record.info.source == OWN_SOURCE
    return is_own and benchmark.profile.benchmark in PICTURE_BENCHMARKS


def ask_judge(folder: Path, opened: Opened, judge: JudgeSpec, workers: Workers) -> None:
    """Let a judge read the answers of records in which the rules find none.

    What it wrote before is not asked again; killed, it goes on at the shard where it stood.

    Args:
        folder: Of the run or the evaluation; the judge's answers go to its `JUDGES_FOLDER`.
        opened: Records and the benchmarks that they answer.
        judge: Which, and on what.
        workers: Where it runs.

    Raises:
        DataError: If no record is of a benchmark that a judge reads.
        NanMergeError: As `answer_benchmarks`.
    """
    able = [(record, each) for record, each in opened if can_be_judged(record, each)]
    if not able:
        raise DataError(
            f"{folder} holds no answers that a judge reads: it reads those to "
            f"{', '.join(PICTURE_BENCHMARKS)}."
        )
    place = resolve_folder(judge.model)
    chat = bool(load_tokenizer(place).chat_template)
    requests = [_requests(record, benchmark, chat) for record, benchmark in able]
    candidate = LanguageCandidate(judge.name, str(place), folder / JUDGES_FOLDER / slug(judge.name))
    written = answer_benchmarks([candidate], requests, judge.backend.options(), workers)
    for record in written.values():
        if read_key(record.path) != record.info.key:  # the rules left nothing to read
            write_info(record.path, record.info)
            write_predictions(record.path, record.info.key, [])


def _requests(record: Record, benchmark: OpenBenchmark, chat: bool) -> OpenBenchmark:
    rule = benchmark.profile.scorers["strict"]
    samples = tuple(
        request_of(sample, answer)
        for sample, answer in _pairs(record, benchmark)
        if is_left_open(rule, sample, answer)
    )
    return OpenBenchmark(
        named=EXTRACTION,
        profile=extraction_profile(f"{benchmark.profile.benchmark}-{record.info.key[:12]}"),
        folder=record.path.parent,
        samples=samples,
        asked=frozenset(each.id for each in samples),
        digest=requests_digest(record.info.key),
        uses_chat_template=chat,
    )


def _pairs(record: Record, benchmark: OpenBenchmark) -> list[tuple[Sample, Answer]]:
    by_id = {sample.id: sample for sample in benchmark.samples}
    return [(by_id[each.sample_id], each) for each in record.answers()]


def judges_of(record: Record, extractions: Sequence[Record]) -> dict[str, Record]:
    """Judge's name -> what it wrote about a record; with its key where two have one name."""
    digest = requests_digest(record.info.key)
    found = [each for each in extractions if each.info.made_of.get("data") == digest]
    names = [each.info.model for each in found]
    return {
        name if names.count(name) == 1 else f"{name}@{each.info.key[:8]}": each
        for name, each in zip(names, found, strict=True)
    }


def judged_benchmark(benchmark: OpenBenchmark, name: str, judge: Record) -> OpenBenchmark:
    """A benchmark whose profile, under another name, scores with what a judge wrote.

    Raises:
        DataError: If what it wrote is damaged.
    """
    return replace(benchmark, profile=judged_profile(benchmark.profile, name, said_by(judge)))


def said_by(judge: Record) -> dict[str, str]:
    """`request_id` -> what a judge wrote; raises `DataError` if it is damaged."""
    return {each.sample_id: each.completion for each in judge.answers()}


def has_read_all(record: Record, benchmark: OpenBenchmark, judge: Record) -> bool:
    """Whether a judge has read every answer of a record that the rules leave open."""
    rule, said = benchmark.profile.scorers["strict"], said_by(judge)
    return all(
        request_of(sample, answer).id in said
        for sample, answer in _pairs(record, benchmark)
        if is_left_open(rule, sample, answer)
    )


def judge_note(record: Record, benchmark: OpenBenchmark, name: str, judge: Record) -> str:
    """How much of a score is a judge's reading."""
    rule = benchmark.profile.scorers["strict"]
    pairs = _pairs(record, benchmark)
    read = count_readings(rule, pairs, said_by(judge))
    return (
        f"note: {record.info.model}, {benchmark.name}: of {len(pairs):,} answers the rules leave "
        f"{read.num_open:,} open; the judge {name} reads an answer in {read.num_found:,} of these, "
        f"{read.num_elsewhere:,} times one that does not stand there in the same words."
    )


def judge_identity(judge: Record) -> str:
    """What two scores with judges must share to be compared: weights, tokenizer and template."""
    made_of: Mapping[str, object] = judge.info.made_of
    return digest_text(
        json.dumps([made_of.get("model"), made_of.get("chat_template")], sort_keys=True)
    )


def pick_judge(name: str, judges: Mapping[str, Record], what: str, folder: Path) -> Record:
    """The judge of this name.

    Raises:
        DataError: If it has not read these answers.
    """
    if name in judges:
        return judges[name]
    have = f"only {', '.join(judges)}" if judges else "no judge has"
    near = did_you_mean(name, list(judges)) or "."
    raise DataError(
        f"{what}: a judge {name} has not read these answers, {have}{near} "
        f"`nan-merge rescore {folder} --judge MODEL` asks one."
    )
