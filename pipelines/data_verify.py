"""Check benchmarks' data: is it whole, can every question be scored, is it what is published?"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from evaluators.data_check import CHECKED_BENCHMARKS, DataReport, check_data
from nan_merge.errors import DataError
from pipelines.sheet import Cell, Line, Sheet, rich_table

_PUBLIC = {True: "yes", False: "no", None: "not known"}


def verify_command(folder: Path, console: Console) -> None:
    """Check every benchmark in a folder, and print counts, digests and what is odd.

    Raises:
        DataError: Every problem that was found, one a line; or if there is no benchmark.
    """
    reports = [
        check_data(name, folder / name) for name in CHECKED_BENCHMARKS if (folder / name).is_dir()
    ]
    if not reports:
        raise DataError(
            f"{folder} holds no folder of a benchmark ({', '.join(CHECKED_BENCHMARKS)})."
        )
    columns = ("files", "questions", "published", "digest", "the public data")
    caption = "Digest: of the content, the same for CSV, JSON and parquet; SHA-256."
    sheet = Sheet(str(folder), "benchmark", columns, tuple(map(_line, reports)), caption)
    console.print(rich_table(sheet, console.width))
    for report in reports:
        for row in report.rows:
            for note in row.notes:
                console.print(
                    f"{report.benchmark}: {row.subset}, {row.split}: {note}",
                    markup=False,
                    highlight=False,
                )
    problems = [problem for report in reports for problem in report.all_problems()]
    if problems:
        raise DataError("\n".join(problems))


def _line(report: DataReport) -> Line:
    cells = (
        f"{len(report.rows)}",
        f"{report.num_questions:,}",
        f"{report.num_published:,}",
        report.digest[:16] if report.digest else "cannot be read",
        _PUBLIC[report.is_known],
    )
    return Line(report.benchmark, tuple(Cell(text) for text in cells))
