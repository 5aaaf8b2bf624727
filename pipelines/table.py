"""Tables of results: scores of one run, scores over seeds, and differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING

from evaluators.language_scores import METRIC as LANGUAGE_METRIC
from pipelines.results import RunResults
from pipelines.sheet import (
    MISSING,
    UNKNOWN_ERRORS,
    Cell,
    Line,
    Sheet,
    markdown,
    rich_table,
    spread_in_percent,
)
from pipelines.sweep_table import SELECTED, SELECTED_NOTE

if TYPE_CHECKING:
    from rich.table import Table

METRIC_NAMES = {"top1": "top-1 accuracy"}
Scores = dict[tuple[str, str | None], tuple[float, str]]
# (model, benchmark) -> value in [0, 1] and its ±; no benchmark stands for the average.


def results_table(results: RunResults, width: int = 100) -> Table:
    """The scores of one run, drawn for a terminal of ``width`` columns."""
    return rich_table(results_sheet(results), width)


def seeds_table(results: Sequence[RunResults], width: int = 100) -> Table:
    """Mean and sample standard deviation over seeds, drawn for a terminal of ``width`` columns."""
    return rich_table(seeds_sheet(results), width)


def seed_differences(results: Sequence[RunResults], pairs: Sequence[tuple[str, str]]) -> Table:
    """Differences of averages, paired by seed, drawn for a terminal."""
    return rich_table(differences_sheet(results, pairs))


def markdown_table(results: RunResults) -> str:
    """The scores of one run in Markdown."""
    return markdown(results_sheet(results))


def markdown_seeds_table(results: Sequence[RunResults]) -> str:
    """Mean and sample standard deviation over seeds in Markdown."""
    return markdown(seeds_sheet(results))


def results_sheet(results: RunResults) -> Sheet:
    """Rows are models, columns benchmarks with the average last, values in percent.

    The best merged model of each column is marked, all of them where models tie.
    """
    scores: Scores = {(row.model, row.benchmark): (row.value, "") for row in results.rows}
    for model in results.models():
        average = results.average(model)
        if average:
            scores[model, None] = (average[0], spread_in_percent(average[1]))
    caption = (
        f"{metric_name(results)} in %; ±: one standard error over {error_source(results)}; "
        f"*: best merged model of the column; n = {sample_counts(results)} samples per benchmark."
    )
    if results.sweep:
        caption += f" {SELECTED_NOTE}"
    if any(spread == MISSING for _, spread in scores.values()):
        caption += UNKNOWN_ERRORS
    return _score_sheet(f"{results.name} (seed {results.seed})", results, scores, caption)


def seeds_sheet(results: Sequence[RunResults]) -> Sheet:
    """Mean and sample standard deviation (n - 1) over seeds of every score and average.

    A cell that is missing for any seed stays empty: a mean over fewer seeds would not compare.
    """
    first = _checked_seeds(results)
    scores: Scores = {}
    for model in first.models():
        for benchmark in (*first.benchmarks(), None):
            found = _over_seeds(results, model, benchmark)
            if found:
                spread = _percent(stdev(found)) if len(found) > 1 else ""
                scores[model, benchmark] = (mean(found), spread)
    caption = (
        f"{metric_name(first)} in %; mean ± sample standard deviation over "
        f"{_seed_names(results)}; *: best merged model of the column."
    )
    return _score_sheet(first.name, first, scores, caption)


def differences_sheet(results: Sequence[RunResults], pairs: Sequence[tuple[str, str]]) -> Sheet:
    """Average of model a minus average of model b, per seed, with mean and standard deviation.

    Seeds move all models together, so the spread of the paired differences tells more than the
    spreads of the two averages.
    """
    first = _checked_seeds(results)
    lines = []
    for a, b in pairs:
        found = [(run.average(a), run.average(b)) for run in results]
        paired = [(x[0] - y[0]) * 100 if x and y else None for x, y in found]
        cells = [Cell(MISSING if points is None else f"{points:+.2f}") for points in paired]
        known = [points for points in paired if points is not None]
        summary = Cell(MISSING)
        if known and len(known) == len(paired):
            spread = f"{stdev(known):.2f}" if len(known) > 1 else ""
            summary = Cell(f"{mean(known):+.2f}", spread)
        lines.append(Line(f"{a} − {b}", (*cells, summary)))
    columns = (*(f"seed {run.seed}" for run in results), "mean")
    caption = (
        "Difference of the averages in percentage points, paired by seed. "
        f"Mean ± sample standard deviation over {_seed_names(results)}."
    )
    return Sheet(f"{first.name}: differences", "difference", columns, tuple(lines), caption)


def merged_models(results: RunResults) -> list[str]:
    """Names of the merged models, in the order of the table."""
    return list(dict.fromkeys(row.model for row in results.rows if row.kind == "merged"))


def metric_name(results: RunResults) -> str:
    """What the numbers are, in words."""
    metrics = dict.fromkeys(METRIC_NAMES.get(row.metric, row.metric) for row in results.rows)
    return " / ".join(metrics) or "score"


def sample_counts(results: RunResults) -> str:
    """Samples per benchmark: one number, or the range of them."""
    counts = sorted({row.num_samples for row in results.rows})
    if not counts:
        return "0"
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def error_source(results: RunResults) -> str:
    """What standard errors are over: sources that samples share, or samples in older results."""
    if any(row.metric == LANGUAGE_METRIC for row in results.rows):
        return "questions"
    return "the test set's sources" if results.averages else "test samples"


def _score_sheet(title: str, results: RunResults, scores: Scores, caption: str) -> Sheet:
    """Lay out scores in the order of ``results`` and mark the best merged model per column."""
    keys = (*results.benchmarks(), None)
    merged = merged_models(results)
    best = {
        key: max((scores[model, key][0] for model in merged if (model, key) in scores), default=0.0)
        for key in keys
    }

    def cell(model: str, key: str | None) -> Cell:
        if (model, key) not in scores:
            return Cell(MISSING)
        value, spread = scores[model, key]
        # Averages of equal scores may differ in the last bit.
        is_best = model in merged and math.isclose(value, best[key], abs_tol=1e-12)
        return Cell(_percent(value), spread, best=is_best)

    lines = tuple(
        Line(_marked(results, model), tuple(cell(model, key) for key in keys), opens_group)
        for model, opens_group in _grouped(results)
    )
    return Sheet(title, "model", (*results.benchmarks(), "average"), lines, caption)


def _marked(results: RunResults, model: str) -> str:
    """A model's name, with a mark if a sweep selected it."""
    point = results.sweep.get(model)
    return model + SELECTED if point is not None and point.is_selected else model


def _grouped(results: RunResults) -> list[tuple[str, bool]]:
    """Models with whether each opens a group: models that are not merged, then each method."""
    groups: dict[str, str] = {}
    for row in results.rows:
        groups.setdefault(row.model, row.method if row.kind == "merged" else "")
    models = list(groups)
    return [
        (model, index > 0 and groups[model] != groups[models[index - 1]])
        for index, model in enumerate(models)
    ]


def _over_seeds(
    results: Sequence[RunResults], model: str, benchmark: str | None
) -> list[float] | None:
    """One value per seed (None stands for the average), or None if any seed lacks it."""
    values: list[float] = []
    for run in results:
        row = run.row(model, benchmark) if benchmark is not None else None
        average = run.average(model) if benchmark is None else None
        if row is None and average is None:
            return None
        values.append(row.value if row else average[0] if average else math.nan)
    return values


def _checked_seeds(results: Sequence[RunResults]) -> RunResults:
    """The first run, which gives the order of rows and columns."""
    seeds = [run.seed for run in results]
    if not seeds:
        raise ValueError("no results to compare")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ, or they count twice; got {seeds}")
    return results[0]


def _seed_names(results: Sequence[RunResults]) -> str:
    seeds = ", ".join(str(run.seed) for run in results)
    return f"seeds {seeds}" if len(results) > 1 else f"seed {seeds} (one seed has no spread)"


def _percent(value: float) -> str:
    return f"{value * 100:.1f}"
