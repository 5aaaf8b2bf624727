"""A run's scores beside numbers that were published elsewhere, in the form of their table."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

from pipelines.results import RunResults
from pipelines.sheet import MISSING, Cell, Line, Sheet

if TYPE_CHECKING:
    from pipelines.published_config import Published

THIS_RUN, PUBLISHED = "this run", "published"
CONFIDENCE = 0.95
# An average and scores of one decimal each: half of a last digit on both sides.
MOST_BY_ROUNDING = 0.1 + 1e-9
# Standard errors from the middle of a normal distribution to the ends of the interval.
REACH = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def published_sheet(results: RunResults, published: Published) -> Sheet:
    """The published table: its rows, columns and order, the run's number beside each of its own.

    The averages of both are over the published columns; without any, each over its own.
    """
    benchmarks = published.benchmarks
    asked = _asked(results, benchmarks)
    merged = {row.model for row in results.rows if row.kind == "merged"}
    lines: list[Line] = []
    for row, scores in published.scores.items():
        model = published.model_of(row)
        cells: list[Cell] = []
        for benchmark in benchmarks:
            cells += [_score(results, model, asked[benchmark]), _published(scores.get(benchmark))]
        cells += [_average(results, model, asked), _published(_published_average(published, row))]
        before = list(published.scores)[: len(lines)]
        opens = model in merged and not {published.model_of(each) for each in before} & merged
        label = row if row == model else f"{model} for {row}"
        lines.append(Line(label, tuple(cells), bool(lines) and opens))
    caption = f"In %: this run's number ± one standard error, then that of {published.source}."
    return Sheet(
        title=f"Beside {published.source}",
        label_header="Method",
        columns=(THIS_RUN, PUBLISHED) * (len(benchmarks) + 1),
        lines=tuple(lines),
        caption=" ".join([caption, *_remarks(results, published)]),
        groups=_groups(published),
    )


def published_differences_sheet(results: RunResults, published: Published) -> Sheet | None:
    """Differences of the pairs that the run file names, with intervals; None if it names none."""
    if not published.differences:
        return None
    benchmarks = published.benchmarks
    asked = _asked(results, benchmarks)
    lines: list[Line] = []
    for row, baseline in published.differences:
        pair = published.model_of(row), published.model_of(baseline)
        scores, others = published.scores[row], published.scores[baseline]
        cells: list[Cell] = []
        for name in benchmarks:
            theirs = _minus(scores.get(name), others.get(name))
            cells += [_difference(results, pair, asked[name]), _published(theirs, signed=True)]
        theirs = _minus(_published_average(published, row), _published_average(published, baseline))
        own = _difference(results, pair, "" if _covers(results, asked) else None)
        lines.append(Line(f"{row} − {baseline}", (*cells, own, _published(theirs, signed=True))))
    return Sheet(
        title=f"Differences beside those of {published.source}",
        label_header="Difference",
        columns=(THIS_RUN, PUBLISHED) * (len(benchmarks) + 1),
        lines=tuple(lines),
        caption=(
            "In percentage points. In square brackets: the interval that covers the difference in "
            f"{CONFIDENCE:.0%} of such draws of samples, {REACH:.2f} standard errors to both "
            "sides, paired by sample. It needs some dozens of samples to be right, and says "
            "nothing about fine-tuning with another seed. Where it holds 0, this run does not tell "
            "the two apart. The published differences come without errors."
        ),
        groups=_groups(published),
    )


def _groups(published: Published) -> tuple[str, ...]:
    names = [published.columns.get(name, name) for name in published.benchmarks]
    return (*names, published.average_column)


def _asked(results: RunResults, benchmarks: list[str]) -> dict[str, str | None]:
    """Published benchmark -> this run's column, "mmlu (3 of 57 subsets)"; None if not asked."""
    own = {name.partition(" (")[0]: name for name in results.benchmarks()}
    return {benchmark: own.get(benchmark) for benchmark in benchmarks}


def _covers(results: RunResults, asked: dict[str, str | None]) -> bool:
    """Whether the run asked what was published, and nothing else: then its averages compare.

    Where averages alone were published, they stand beside the run's, whatever it asked.
    """
    return not asked or set(asked.values()) == set(results.benchmarks())


def _score(results: RunResults, model: str, benchmark: str | None) -> Cell:
    row = results.row(model, benchmark) if benchmark is not None else None
    return Cell(MISSING) if row is None else _cell(row.value, row.standard_error)


def _average(results: RunResults, model: str, asked: dict[str, str | None]) -> Cell:
    if _covers(results, asked):
        found = results.average(model)
        return Cell(MISSING) if found is None else _cell(*found)
    rows = [results.row(model, name) if name is not None else None for name in asked.values()]
    values = [row.value for row in rows if row is not None]
    return _cell(sum(values) / len(values), math.nan) if len(values) == len(rows) else Cell(MISSING)


def _cell(value: float, error: float) -> Cell:
    return Cell(f"{value * 100:.1f}", f"{error * 100:.1f}" if math.isfinite(error) else "")


def _difference(results: RunResults, pair: tuple[str, str], benchmark: str | None) -> Cell:
    for each in results.comparisons:
        if ((each.model, each.baseline), each.benchmark) == (pair, benchmark):
            points, reach = each.difference * 100, each.standard_error * 100 * REACH
            known = math.isfinite(reach)
            interval = f"{_signed(points - reach)}, {_signed(points + reach)}" if known else ""
            return Cell(_signed(points), interval=interval)
    return Cell(MISSING)


def _published_average(published: Published, row: str) -> float | None:
    if row in published.averages:
        return published.averages[row]
    scores = [published.scores[row].get(name) for name in published.benchmarks]
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known and len(known) == len(scores) else None


def _other_means(published: Published) -> str:
    """Rows whose printed average is not the mean of their printed scores, rounded as they are."""
    found: list[str] = []
    for row, printed in published.averages.items():
        scores = [published.scores[row].get(name) for name in published.benchmarks]
        known = [score for score in scores if score is not None]
        mean = sum(known) / len(known) if known else printed
        if len(known) == len(scores) and abs(mean - printed) > MOST_BY_ROUNDING:
            found.append(f"{mean:.1f} in {row} (printed {printed:.1f})")
    return ", ".join(found)


def _published(value: float | None, *, signed: bool = False) -> Cell:
    if value is None:
        return Cell(MISSING)
    return Cell(_signed(value) if signed else f"{value:.1f}")


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _signed(points: float) -> str:
    text = f"{points:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def _remarks(results: RunResults, published: Published) -> list[str]:
    """What makes the two sides differ, as far as it is known."""
    remarks = [published.note] if published.note else []
    if other := _other_means(published):
        remarks.append(f"Published averages are as printed; the mean of its row is {other}.")
    if not published.benchmarks:
        remarks.append("Averages alone: this run's are over the benchmarks that it asked.")
    partial = [name for name in results.benchmarks() if name.endswith(" subsets)")]
    if partial:
        remarks.append(f"This run asked only a part: {', '.join(partial)}.")
    counts = {row.benchmark.partition(" (")[0]: row.num_samples for row in results.rows}
    if counts:
        asked = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        remarks.append(f"Samples of this run: {asked}.")
    return remarks
