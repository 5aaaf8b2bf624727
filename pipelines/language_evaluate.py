"""Ask language models the questions of benchmarks; what was answered before is read, not asked.

The same shape as `pipelines.evaluate`, which does it for images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluators.answers import Answer
from evaluators.language_evaluation import (
    LanguageModelOptions,
    LanguageShard,
    answer_shard,
    language_shards,
    open_language_model,
)
from evaluators.prediction_journal import PredictionJournal
from evaluators.predictions import read_key, read_predictions
from evaluators.rendering import check_chat_template, load_tokenizer, wording_of
from nan_merge.errors import EngineDiedError
from nan_merge.hub import resolve_folder
from pipelines.earlier_answers import take_over
from pipelines.language_benchmarks import OpenBenchmark
from pipelines.language_records import (
    Record,
    model_identity,
    record_info,
    record_path,
    write_info,
)
from pipelines.workers import Workers


@dataclass(frozen=True)
class LanguageCandidate:
    """One model to score.

    Attributes:
        name: Row of the table.
        folder: Its checkpoint: a folder or a hub id.
        predictions: Folder of its records of answers.
        identity: What `model_identity` said of its checkpoint, if that may be gone by now.
        earlier: Folders of its records in the same run with other seeds.
    """

    name: str
    folder: str
    predictions: Path
    identity: Mapping[str, str] | None = None
    earlier: tuple[Path, ...] = ()


def answer_benchmarks(
    candidates: Sequence[LanguageCandidate],
    benchmarks: Sequence[OpenBenchmark],
    options: LanguageModelOptions,
    workers: Workers,
) -> dict[tuple[str, str], Record]:
    """Records of answers by (candidate's name, `OpenBenchmark.name`).

    Only what no earlier run answered is asked, shard by shard; a model is loaded once for all of
    its benchmarks.

    Raises:
        CheckpointError: If a model or its tokenizer cannot be read.
        EvaluationError: If a chat template is wanted that a model lacks; if a model cannot be
            served, or its engine dies again and again. What was answered by then is kept.
    """
    records: dict[tuple[str, str], Record] = {}
    work: list[_Work] = []
    for candidate in candidates:
        folder, identity = _identified(candidate)
        missing: list[_Missing] = []
        for benchmark in benchmarks:
            info = record_info(candidate.name, folder, identity, benchmark, options)
            path = record_path(candidate.predictions, info)
            records[candidate.name, benchmark.name] = Record(path, info)
            if candidate.earlier:
                write_info(path, info)
                others = [record_path(each, info) for each in candidate.earlier]
                take_over(path, info.key, others)
            if found := _missing(Record(path, info), benchmark):
                _check_tokenizer(folder, benchmark)
                write_info(path, info)
                missing.append(found)
        if missing:
            work.append(_Work(candidate.name, folder, missing))
    _answer(work, options, workers)
    return records


def is_answered(
    candidate: LanguageCandidate,
    benchmarks: Sequence[OpenBenchmark],
    options: LanguageModelOptions,
) -> bool:
    """Whether all of a candidate's answers are there."""
    folder, identity = _identified(candidate)
    for benchmark in benchmarks:
        info = record_info(candidate.name, folder, identity, benchmark, options)
        path = record_path(candidate.predictions, info)
        if read_key(path) != info.key:
            return False
        if not benchmark.asked <= {each.sample_id for each in read_predictions(path, Answer)}:
            return False
    return True


def _identified(candidate: LanguageCandidate) -> tuple[Path, Mapping[str, str]]:
    """Where a candidate's checkpoint is, or was, and its digests."""
    if candidate.identity is not None:
        return Path(candidate.folder), candidate.identity
    folder = resolve_folder(candidate.folder)
    return folder, model_identity(folder)


def _check_tokenizer(folder: Path, benchmark: OpenBenchmark) -> None:
    """See in a second what would fail after the minutes that a large model takes to load."""
    tokenizer = load_tokenizer(folder)
    if benchmark.uses_chat_template:
        check_chat_template(tokenizer, folder)
    shown = next((sample for sample in benchmark.samples if sample.images), None)
    if shown is not None:
        from evaluators.picture_evaluation import check_sees

        wording = wording_of(benchmark.profile, benchmark.uses_chat_template)
        check_sees(tokenizer, folder, shown, wording)


@dataclass(frozen=True)
class _Missing:
    """What a candidate has still to answer on one benchmark."""

    journal: PredictionJournal[Answer]
    shards: list[LanguageShard]


@dataclass(frozen=True)
class _Work:
    """What a candidate has still to answer."""

    name: str
    folder: Path
    missing: list[_Missing]


def _missing(record: Record, benchmark: OpenBenchmark) -> _Missing | None:
    """Open the journal of a record that lacks answers; None if it is complete."""
    path, key = record.path, record.info.key
    known = read_predictions(path, Answer) if read_key(path) == key else []
    known_ids = {answer.sample_id for answer in known}
    if benchmark.asked <= known_ids:
        return None
    # A record that answers some samples, because fewer were asked, is added to.
    ids = [each.id for each in benchmark.samples if each.id in benchmark.asked | known_ids]
    journal = PredictionJournal(path, key, ids, Answer, known)
    # Not of what the journal lacks, so that shards do not depend on where a run was killed.
    shards = language_shards(
        benchmark.profile,
        [each for each in benchmark.samples if each.id in benchmark.asked - known_ids],
        uses_chat_template=benchmark.uses_chat_template,
    )
    places = {sample_id: place for place, sample_id in enumerate(ids)}
    numbers = journal.missing([[places[each.id] for each in shard.samples] for shard in shards])
    if not numbers:
        journal.finish()  # the earlier run was killed at this point
        return None
    return _Missing(journal, [shards[number] for number in numbers])


def _answer(work: Sequence[_Work], options: LanguageModelOptions, workers: Workers) -> None:
    if not work:
        return
    from cluster.actors import ModelJob

    journals: dict[tuple[str, str], PredictionJournal[Answer]] = {}
    jobs: list[ModelJob] = []
    for each in work:
        for missing in each.missing:
            journals[each.name, missing.shards[0].name] = missing.journal
        jobs.append(
            ModelJob(
                label=each.name,
                load=open_language_model,
                arguments=(str(each.folder), options),
                work=answer_shard,
                items=[shard for missing in each.missing for shard in missing.shards],
                own_process=options.backend == "vllm",
                cost_of=lambda shard: shard.num_samples,
                replace_on=(*ModelJob.replace_on, EngineDiedError.__name__),
            )
        )

    def keep(job: ModelJob, shard: LanguageShard, answers: list[Answer]) -> None:
        journals[job.label, shard.name].keep(answers)

    name = f"Asking {len(jobs)} model{'s' * (len(jobs) != 1)}"
    workers.serve_models(name, jobs, keep, samples_of=lambda shard: shard.num_samples)
