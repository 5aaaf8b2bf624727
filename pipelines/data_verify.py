"""Check benchmarks' data: is it whole, can every question be scored, is it what is published?"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from evaluators.clip_sets import CLIP_SETS
from evaluators.clip_sets.check import SetReport, check_set
from evaluators.clip_sets.fetch import fetch_set
from evaluators.clip_sets.layouts import set_folder
from evaluators.data_check import CHECKED_BENCHMARKS, DataReport, check_data
from evaluators.data_fetch import fetch_benchmark
from nan_merge.errors import DataError
from pipelines.sheet import Cell, Line, Sheet, rich_table

_PUBLIC = {True: "yes", False: "no", None: "not known"}


def fetch_command(benchmark: str, folder: Path, *, train: bool, revision: str | None) -> Path:
    """Fetch a benchmark's data; for errors see `fetch_benchmark` and `fetch_set`."""
    if benchmark in CLIP_SETS:
        return fetch_set(benchmark, folder, ("test", "train") if train else ("test",), revision)
    return fetch_benchmark(benchmark, folder, revision)


def verify_command(folder: Path, console: Console, *, classes: bool = False) -> None:
    """Check every benchmark in a folder, and print counts, digests and what is odd.

    Args:
        folder: With a folder for each benchmark.
        console: Where to print.
        classes: Count the images of each class, too.

    Raises:
        DataError: Every problem that was found, one a line; or if there is no benchmark.
    """
    names = [name for name in CHECKED_BENCHMARKS if (folder / name).is_dir()]
    sets = {name: found for name in CLIP_SETS if (found := set_folder(name, folder)) is not None}
    if not names and not sets:
        known = ", ".join([*CHECKED_BENCHMARKS, *CLIP_SETS])
        raise DataError(f"{folder} holds no folder of a benchmark ({known}).")
    problems = _verify_questions(names, folder, console) if names else []
    problems += _verify_images(sets, folder, console, classes) if sets else []
    if problems:
        raise DataError("\n".join(problems))


def _verify_questions(names: list[str], folder: Path, console: Console) -> list[str]:
    reports = [check_data(name, folder / name) for name in names]
    columns = ("files", "questions", "published", "digest", "the public data")
    caption = "Digest: of the content, the same for CSV, JSON and parquet; SHA-256."
    sheet = Sheet(str(folder), "benchmark", columns, tuple(map(_line, reports)), caption)
    console.print(rich_table(sheet, console.width))
    for report in reports:
        for row in report.rows:
            for note in row.notes:
                _say(console, f"{report.benchmark}: {row.subset}, {row.split}: {note}")
    return [problem for report in reports for problem in report.all_problems()]


def _verify_images(
    sets: dict[str, Path], folder: Path, console: Console, classes: bool
) -> list[str]:
    reports = [check_set(CLIP_SETS[name], found) for name, found in sets.items()]
    columns = ("layout", "images", "published", "classes", "images a class", "digest")
    lines = tuple(_set_line(report) for report in reports)
    caption = "Digest: of labels and decoded pictures, the same for every layout; SHA-256."
    sheet = Sheet(f"{folder}, test images", "set", columns, lines, caption)
    console.print(rich_table(sheet, console.width))
    for report in reports:
        for note in report.notes:
            _say(console, f"{report.name}: {note}")
        if classes:
            counts = tuple(
                Line(name, (Cell(f"{count:,}"),)) for name, count in report.counts.items()
            )
            console.print(rich_table(Sheet(report.name, "class", ("images",), counts, ""), 80))
    return [problem for report in reports for problem in report.problems]


def _set_line(report: SetReport) -> Line:
    counts = [count for count in report.counts.values() if count]
    spread = f"{min(counts):,} to {max(counts):,}" if counts else "—"
    cells = (
        report.layout,
        f"{sum(counts):,}",
        f"{CLIP_SETS[report.name].num_test:,}",
        f"{len(counts)} of {len(CLIP_SETS[report.name].class_names)}",
        spread,
        report.digest[:16] if report.digest else "cannot be read",
    )
    return Line(report.name, tuple(Cell(text) for text in cells))


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)


def _line(report: DataReport) -> Line:
    cells = (
        f"{len(report.rows)}",
        f"{report.num_questions:,}",
        f"{report.num_published:,}",
        report.digest[:16] if report.digest else "cannot be read",
        _PUBLIC[report.is_known],
    )
    return Line(report.benchmark, tuple(Cell(text) for text in cells))
