"""Evaluate a language model on the command line; score its answers again; show them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from nan_merge.errors import ConfigError, DataError
from pipelines.cluster_config import Cluster
from pipelines.extras import require
from pipelines.import_lm_eval import is_lm_eval_folder, read_lm_eval
from pipelines.import_opencompass import is_opencompass_folder, read_opencompass
from pipelines.imported import write_imported
from pipelines.interrupt import noticing_interrupts
from pipelines.judging import (
    JudgeSpec,
    ask_judge,
    has_read_all,
    judge_note,
    judged_benchmark,
    judges_of,
)
from pipelines.language_benchmarks import OpenBenchmark
from pipelines.language_config import BackendSpec, BenchmarkSpec, EngineSpec
from pipelines.language_engine import answer_by_engine, as_answered, open_benchmarks
from pipelines.language_evaluate import LanguageCandidate
from pipelines.language_records import OWN_SOURCE, Record, find_extractions, find_records
from pipelines.language_scores import (
    ScoredRecord,
    benchmark_of,
    groups_sheet,
    measures_sheet,
    notes_of,
    score_record,
    scores_json,
    scores_sheet,
)
from pipelines.language_workers import with_model_resources
from pipelines.output_files import write_json
from pipelines.progress import RunProgress
from pipelines.run_folder import slug, sole_writer
from pipelines.sheet import rich_table
from pipelines.workers import Workers

SCORES_NAME = "scores.json"
PREDICTIONS_FOLDER = "predictions"


def evaluate_command(
    model: str,
    specs: Sequence[BenchmarkSpec],
    backend: BackendSpec,
    console: Console,
    *,
    data: Path | None = None,
    output: Path | None = None,
    cluster: Cluster | None = None,
    engine: EngineSpec | None = None,
) -> list[ScoredRecord]:
    """Ask a model the questions of benchmarks, score the answers, print and write the scores.

    Args:
        model: Checkpoint folder or hub id.
        specs: What is asked.
        backend: What the model runs on.
        console: Where to print.
        data: Where data is that no spec names.
        output: Folder of results; ``runs/evaluations/MODEL`` if None.
        cluster: Where Ray runs; here if None.
        engine: Who asks and scores; this project if None.

    Raises:
        NanMergeError: With a message for the user.
    """
    require(["ray", backend.name])
    engine = engine or EngineSpec()
    benchmarks = open_benchmarks(specs, data, engine)
    _refuse_repeated(benchmarks)
    name = model.rstrip("/").rpartition("/")[2]
    name = Path(model).resolve().name if name in ("", ".", "..") else name
    folder = output or Path("runs/evaluations") / slug(name)
    candidate = LanguageCandidate(name, model, folder / PREDICTIONS_FOLDER)
    placed = with_model_resources(cluster or Cluster(), backend)
    with noticing_interrupts() as interrupted, sole_writer(folder) as held:
        checks = (interrupted, held.check)
        with Workers(placed, RunProgress(console), folder, checks) as workers:
            records = answer_by_engine([candidate], benchmarks, engine, backend, folder, workers)
        scored: list[ScoredRecord] = []
        for each in benchmarks:
            record = records[name, each.name]
            opened = as_answered(record, each)
            scored += [
                score_record(record, opened, scorer, each.asked)
                for scorer in opened.profile.scorers
            ]
        write_json(folder / SCORES_NAME, scores_json(scored))
    _print(scored, name, console)
    console.print(
        f"\nScores       {folder / SCORES_NAME}\nPredictions  {candidate.predictions}   "
        f"(nan-merge predictions show {shlex.quote(str(folder))})",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    return scored


def rescore_command(
    folder: Path, data: Path | None, console: Console, judge: JudgeSpec | None = None
) -> list[ScoredRecord]:
    """Score all records below a folder again with the scorers of today; asks no model.

    Args:
        folder: Of an evaluation or a run.
        data: The data's folder, if it is not where it was.
        console: Where to print.
        judge: Who is asked to read the answers in which the rules find none; nobody if None. What
            judges read before is scored in any case, under names of its own.

    Raises:
        DataError: If there are no records, or their data is gone or changed.
        NanMergeError: If the judge cannot be asked.
    """
    opened = _opened_records(folder, data)
    if judge is not None:
        _ask_judge(folder, opened, judge, console)
    extractions = find_extractions(folder)
    scored: list[ScoredRecord] = []
    notes: list[str] = []
    for record, benchmark in opened:
        scored += [score_record(record, benchmark, each) for each in benchmark.profile.scorers]
        for name, found in judges_of(record, extractions).items():
            if not has_read_all(record, benchmark, found):
                notes.append(
                    f"note: {record.info.model}, {benchmark.name}: the judge {name} has not read "
                    "all answers, so there is no score with it; ask it again with --judge."
                )
                continue
            judged = judged_benchmark(benchmark, name, found)
            scored.append(replace(score_record(record, judged, "strict"), judge=found.info))
            notes.append(judge_note(record, benchmark, name, found))
    write_json(folder / SCORES_NAME, scores_json(scored))
    _print(scored, folder.name, console)
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print(f"\nScores  {folder / SCORES_NAME}", markup=False, highlight=False)
    return scored


def _opened_records(folder: Path, data: Path | None) -> list[tuple[Record, OpenBenchmark]]:
    """All finished records, each with what it answers; data is opened once."""
    opened: dict[tuple[str, ...], OpenBenchmark] = {}
    found: list[tuple[Record, OpenBenchmark]] = []
    for record in find_records(folder):
        if not record.path.is_file():
            continue
        key = _questions_key(record)
        if key not in opened:
            opened[key] = benchmark_of(record, data)
        found.append((record, opened[key]))
    return found


def _ask_judge(
    folder: Path,
    opened: Sequence[tuple[Record, OpenBenchmark]],
    judge: JudgeSpec,
    console: Console,
) -> None:
    require(["ray", judge.backend.name])
    placed = with_model_resources(Cluster(), judge.backend)
    with noticing_interrupts() as interrupted, sole_writer(folder) as held:
        checks = (interrupted, held.check)
        with Workers(placed, RunProgress(console), folder, checks) as workers:
            ask_judge(folder, opened, judge, workers)


def import_command(folder: Path, output: Path, console: Console) -> list[ScoredRecord]:
    """Take another harness' results into records of ours, and print their scores.

    Raises:
        DataError: If the folder is of no harness that is known, or its files are damaged.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    if is_lm_eval_folder(folder):
        found = read_lm_eval(folder)
    elif is_opencompass_folder(folder):
        found = read_opencompass(folder)
    else:
        raise DataError(
            f"{folder} is neither of lm-evaluation-harness (results_*.json and samples_*.jsonl) "
            "nor of OpenCompass (predictions/ and results/)."
        )
    with sole_writer(output):
        for each in found:
            write_imported(each, output / PREDICTIONS_FOLDER / slug(each.model))
    return rescore_command(output, None, console)


def _questions_key(record: Record) -> tuple[str, ...]:
    """Records of several models that answer the same questions share it."""
    info = record.info
    own = "" if info.source == OWN_SOURCE else str(record.path)
    chat = str(info.uses_chat_template)
    return (info.benchmark, info.profile, info.data, str(info.made_of.get("data")), chat, own)


def _print(scored: Sequence[ScoredRecord], title: str, console: Console) -> None:
    console.print(rich_table(scores_sheet(scored, title), console.width))
    if (groups := groups_sheet(scored)) is not None:
        console.print(rich_table(groups, console.width))
    if (measures := measures_sheet(scored)) is not None:
        console.print(rich_table(measures, console.width))
    for note in notes_of(scored):
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def _refuse_repeated(benchmarks: Sequence[OpenBenchmark]) -> None:
    names = [each.name for each in benchmarks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{', '.join(twice)} is named twice; name every benchmark once.")
