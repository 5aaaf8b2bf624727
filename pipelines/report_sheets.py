"""Tables that only the report shows: differences, coefficients, where the numbers come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os.path import commonpath

from pipelines.plots import layered_merges
from pipelines.results import RunResults, baseline_model
from pipelines.sheet import MISSING, UNKNOWN_ERRORS, Cell, Line, Sheet, spread_in_percent
from pipelines.table import error_source, merged_models


def baseline_sheet(results: RunResults, shown: Sequence[str] | None = None) -> Sheet | None:
    """Each merged model's average minus the baseline's, in percentage points.

    The baseline is that of all merged models, for that is what differences are kept to.

    Its standard error is paired by sample. In results of older versions it treats the two averages
    as independent, although all models answer the same samples, which makes scores move together:
    there the true error is smaller, as a rule.

    Args:
        results: The run.
        shown: The merged models to show beside the baseline; all if absent.
    """
    baseline = baseline_model(results)
    reference = results.average(baseline) if baseline else None
    if baseline is None or reference is None:
        return None
    lines = []
    for model in merged_models(results):
        if shown is not None and model not in (baseline, *shown):
            continue
        average = results.average(model)
        if model == baseline:
            cells = (Cell(percent(reference[0])), Cell("baseline"), Cell(""))
        elif average is None:
            cells = (Cell(MISSING),) * 3
        else:
            unpaired = (average[0] - reference[0], math.hypot(average[1], reference[1]))
            difference, error = results.differences.get(model, unpaired)
            ratio = f"{difference / error:+.1f}" if error > 0 else MISSING
            cells = (
                Cell(percent(average[0])),
                Cell(f"{difference * 100:+.2f}", spread_in_percent(error, 2)),
                Cell(ratio),
            )
        lines.append(Line(model, cells))
    caption = f"Average minus that of {baseline}, in percentage points; ±: standard error of the "
    caption += (
        f"difference, paired by sample, over {error_source(results)}; few make it uncertain. "
        if results.averages
        else "difference as if the two models had answered different samples. They answered the "
        "same ones, so this is conservative: the true error is smaller, as a rule. "
    )
    caption += (
        "A difference within two errors is not told apart from none by this table; `nan-merge "
        "compare` adds intervals and tests."
    )
    if any(cell.spread == MISSING for line in lines for cell in line.cells):
        caption += UNKNOWN_ERRORS
    columns = ("average", "difference", "in errors")
    return Sheet(f"Differences to {baseline}", "merged model", columns, tuple(lines), caption)


def coefficients_sheet(results: RunResults) -> Sheet | None:
    """Coefficients of every merge with the norms' target and the scale behind them."""
    merges = [merge for merge in results.merges if merge.coefficients]
    models = list(dict.fromkeys(name for merge in merges for name in merge.coefficients))
    lines = tuple(
        Line(
            merge.model,
            (
                Cell(merge.norm_target.replace("_", " ") or MISSING),
                Cell(f"{merge.scale:.4g}"),
                *(
                    Cell(
                        f"{merge.coefficients[name]:.4f}" if name in merge.coefficients else MISSING
                    )
                    for name in models
                ),
                Cell(f"{sum(merge.coefficients.values()):.3f}"),
            ),
        )
        for merge in merges
    )
    caption = (
        "Norm of: what the weights alpha were made from. Scale: the factor from alpha to the "
        "coefficients shown, lambda included."
    )
    columns = ("norm of", "scale", *models, "sum")
    return Sheet("Coefficients", "merge", columns, lines, caption) if merges else None


def layer_sheets(results: RunResults) -> list[Sheet]:
    """Of each merge whose coefficients differ by layer, all of them: a line per layer."""
    return [
        Sheet(
            merge.model,
            "layer",
            tuple(merge.coefficients),
            tuple(
                Line(
                    layer,
                    tuple(
                        Cell(f"{values[model]:.4f}" if model in values else MISSING)
                        for model in merge.coefficients
                    ),
                )
                for layer, values in merge.layers.items()
            ),
            "Where coefficients differ by tensor, a layer's mean.",
        )
        for merge in layered_merges(results)
    ]


def sources_sheet(results: RunResults) -> Sheet | None:
    """For every model of the table, the files that its scores and its weights are in."""
    folders = {merge.model: merge.folder for merge in results.merges}
    lines = tuple(
        Line(
            model,
            (
                Cell(_place(list(results.predictions[model].values()))),
                Cell(folders.get(model) or MISSING),
            ),
        )
        for model in results.models()
        if results.predictions.get(model)
    )
    caption = (
        "Relative to the run folder. `nan-merge predictions show RUN_FOLDER` prints prompt, answer "
        "and verdict of every sample."
    )
    columns = ("predictions", "checkpoint")
    return Sheet("Where the numbers come from", "model", columns, lines, caption) if lines else None


def percent(value: float) -> str:
    """A share in percent."""
    return f"{value * 100:.1f}"


def _place(paths: Sequence[str]) -> str:
    """The folder that files share."""
    return commonpath(paths) or "."
