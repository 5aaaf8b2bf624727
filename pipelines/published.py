"""A run's scores beside numbers that were published elsewhere, in the form of their table."""

from __future__ import annotations

from pipelines.config import Published
from pipelines.results import RunResults
from pipelines.sheet import MISSING, Cell, Line, Sheet


def published_sheet(results: RunResults, published: Published) -> Sheet:
    """A line per published row; each cell is the run's number, then the published one.

    The columns are the published ones; their averages are taken over the same columns.
    """
    columns = list(dict.fromkeys(name for row in published.scores.values() for name in row))
    lines: list[Line] = []
    for model, row in published.scores.items():
        ours = [_ours(results, model, column) for column in columns]
        theirs = [row.get(column) for column in columns]
        pairs = [*zip(ours, theirs, strict=True), (_mean(ours), _mean(theirs))]
        cells = tuple(Cell(f"{_text(own)} ({_text(other)})") for own, other in pairs)
        lines.append(Line(model, cells))
    partial = [name for name in results.benchmarks() if name.endswith(" subsets)")]
    caption = f"In %: this run's number, and in brackets that of {published.source}."
    if published.note:
        caption += f" {published.note}"
    if partial:
        caption += f" This run asked only a part: {', '.join(partial)}."
    title = f"Beside {published.source}"
    return Sheet(title, "model", (*columns, "average"), tuple(lines), caption)


def _ours(results: RunResults, model: str, column: str) -> float | None:
    for row in results.rows:
        # A column over some subsets alone is called "mmlu (3 of 57 subsets)".
        if row.model == model and row.benchmark.partition(" (")[0] == column:
            return row.value * 100
    return None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if values and len(known) == len(values) else None


def _text(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}"
