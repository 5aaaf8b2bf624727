"""Evaluate a language model on the command line; score its answers again; show them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from nan_merge.errors import ConfigError
from pipelines.cluster_config import Cluster
from pipelines.extras import require
from pipelines.interrupt import noticing_interrupts
from pipelines.language_benchmarks import OpenBenchmark, open_benchmark
from pipelines.language_config import BackendSpec, BenchmarkSpec
from pipelines.language_evaluate import LanguageCandidate, answer_benchmarks
from pipelines.language_records import find_records
from pipelines.language_scores import (
    ScoredRecord,
    benchmark_of,
    groups_sheet,
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

    Raises:
        NanMergeError: With a message for the user.
    """
    require(["ray", backend.name])
    benchmarks = [open_benchmark(spec, data) for spec in specs]
    _refuse_repeated(benchmarks)
    name = model.rstrip("/").rpartition("/")[2] or model
    folder = output or Path("runs/evaluations") / slug(name)
    candidate = LanguageCandidate(name, model, folder / PREDICTIONS_FOLDER)
    placed = with_model_resources(cluster or Cluster(), backend)
    with noticing_interrupts() as interrupted, sole_writer(folder) as held:
        checks = (interrupted, held.check)
        with Workers(placed, RunProgress(console), folder, checks) as workers:
            records = answer_benchmarks([candidate], benchmarks, backend.options(), workers)
        scored = [
            score_record(records[name, each.name], each, scorer, each.asked)
            for each in benchmarks
            for scorer in each.profile.scorers
        ]
        write_json(folder / SCORES_NAME, scores_json(scored))
    _print(scored, name, console)
    console.print(
        f"\nScores       {folder / SCORES_NAME}\nPredictions  {candidate.predictions}   "
        f"(nan-merge predictions show {folder})",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    return scored


def rescore_command(folder: Path, data: Path | None, console: Console) -> list[ScoredRecord]:
    """Score all records below a folder again with the scorers of today; asks no model.

    Raises:
        DataError: If there are no records, or their data is gone or changed.
    """
    opened: dict[tuple[str, str, str, bool], OpenBenchmark] = {}
    scored: list[ScoredRecord] = []
    for record in find_records(folder):
        info = record.info
        key = (info.benchmark, info.profile, info.data, info.uses_chat_template)
        if key not in opened:
            opened[key] = benchmark_of(info, data)
        benchmark = opened[key]
        if record.path.is_file():
            scored += [score_record(record, benchmark, each) for each in benchmark.profile.scorers]
    write_json(folder / SCORES_NAME, scores_json(scored))
    _print(scored, folder.name, console)
    console.print(f"\nScores  {folder / SCORES_NAME}", markup=False, highlight=False)
    return scored


def _print(scored: Sequence[ScoredRecord], title: str, console: Console) -> None:
    console.print(rich_table(scores_sheet(scored, title), console.width))
    if (groups := groups_sheet(scored)) is not None:
        console.print(rich_table(groups, console.width))
    for note in notes_of(scored):
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def _refuse_repeated(benchmarks: Sequence[OpenBenchmark]) -> None:
    names = [each.name for each in benchmarks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{', '.join(twice)} is named twice; name every benchmark once.")
