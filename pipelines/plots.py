"""Figures of a run as SVG text: accuracy per task, norms, coefficients."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from pipelines.drawing import BAND, COLOURS, MUTED, bare, clipped, drawing, svg_of
from pipelines.results import MergeSummary, RunResults
from pipelines.sheet import MISSING
from pipelines.table import merged_models, metric_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_PER_ROW = 8
LAYER_PANELS, MOST_LAYERED, MOST_LAYER_LABELS = 2, 12, 16
"""Panels in a row, panels, and labels below each, of coefficients by layer."""


def accuracy_plot(results: RunResults, *, prefix: str = "accuracy") -> str:
    """One panel per benchmark and one for the average; models stand in the order of the table.

    Dots are merged models, coloured by method, with one standard error; the pretrained and
    individual models are lines to read the dots against.

    Args:
        results: The run to draw.
        prefix: Of the SVG's ids; must differ between the figures of a page.
    """
    benchmarks: list[str | None] = [*results.benchmarks(), None]
    models = merged_models(results) or results.models()
    num_columns = min(PANELS_PER_ROW, len(benchmarks))
    num_rows = -(-len(benchmarks) // num_columns)
    row_height = 0.27 * len(models) + 0.55
    with drawing(num_rows * row_height + 0.75) as figure:
        axes = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False).flat
        for axis, benchmark in zip(axes, benchmarks, strict=False):
            _accuracy_panel(axis, results, models, benchmark)
        for axis in list(axes)[len(benchmarks) :]:
            axis.set_visible(False)
        figure.supxlabel(f"{metric_name(results)} in %; bars are ± one standard error", fontsize=9)
        _accuracy_legend(figure, results)
        return svg_of(figure, prefix, "Accuracy of every model on every benchmark")


def norms_plot(results: RunResults) -> str:
    """Norms of the fine-tuned models' weights and of their task vectors, each on its own scale."""
    titles = {"weights": "norm of the weights", "task_vector": "norm of the task vector"}
    panels = [
        (titles.get(target, target), norms)
        for target, norms in results.model_norms.items()
        if norms
    ]
    models = list(dict.fromkeys(model for _, norms in panels for model in norms))
    with drawing(0.3 * max(len(models), 1) + 0.9) as figure:
        axes = figure.subplots(1, max(len(panels), 1), sharey=True, squeeze=False)[0]
        for axis, (title, norms) in zip(axes, panels, strict=False):
            _norm_panel(axis, title, norms, models)
        return svg_of(figure, "norms", "Norms of the fine-tuned models")


def coefficients_plot(results: RunResults) -> str:
    """What multiplies each fine-tuned model in each merge; colour compares within a merge."""
    merges = [merge for merge in results.merges if merge.coefficients]
    models = list(dict.fromkeys(model for merge in merges for model in merge.coefficients))
    with drawing(0.3 * max(len(merges), 1) + 1.5) as figure:
        axis = figure.subplots()
        _coefficient_cells(axis, merges, models)
        return svg_of(figure, "coefficients", "Coefficients of every merge")


def layers_plot(results: RunResults) -> str:
    """Coefficients by layer: one panel per merge that has them, one line per fine-tuned model."""
    merges = layered_merges(results)
    models = list(dict.fromkeys(model for merge in merges for model in merge.coefficients))
    colours = {model: COLOURS[place % len(COLOURS)] for place, model in enumerate(models)}
    num_columns = min(LAYER_PANELS, len(merges))
    num_rows = -(-len(merges) // num_columns)
    with drawing(num_rows * 2.2 + 0.5) as figure:
        axes = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
        for axis, merge in zip(axes, merges, strict=False):
            _layer_lines(axis, merge, colours)
        for axis in axes[len(merges) :]:
            axis.set_visible(False)
        handles, labels = axes[0].get_legend_handles_labels()
        columns = min(8, max(1, len(labels)))
        figure.legend(handles, labels, loc="outside upper right", ncols=columns, frameon=False)
        figure.supxlabel("layer, in the order of their names", fontsize=9)
        names = ", ".join(merge.model for merge in merges)
        return svg_of(figure, "layers", f"Coefficients by layer of {names}")


def layered_merges(results: RunResults) -> list[MergeSummary]:
    """The merges whose coefficients differ by layer, no more than a figure has room for."""
    return [merge for merge in results.merges if len(merge.layers) > 1][:MOST_LAYERED]


def _layer_lines(axis: Axes, merge: MergeSummary, colours: dict[str, str]) -> None:
    for place, (model, colour) in enumerate(colours.items()):
        values = [layer.get(model, math.nan) for layer in merge.layers.values()]
        style = "-" if place < len(COLOURS) else "--"
        axis.plot(range(len(values)), values, style, color=colour, lw=1.2, label=clipped(model, 20))
    names = list(merge.layers)
    shown = range(0, len(names), max(1, -(-len(names) // MOST_LAYER_LABELS)))
    labels = [clipped(".".join(names[place].split(".")[-2:]), 14) for place in shown]
    axis.set_xticks(list(shown), labels, rotation=40, ha="right", fontsize=7)
    axis.set_title(clipped(merge.model, 72), fontsize=9)
    axis.locator_params(axis="y", nbins=4)
    bare(axis)


def _accuracy_panel(
    axis: Axes, results: RunResults, models: list[str], benchmark: str | None
) -> None:
    colours = _method_colours(results)
    methods = {row.model: row.method for row in results.rows}
    for position, model in enumerate(models):
        if position % 2 == 0:
            axis.axhspan(position - 0.5, position + 0.5, color=BAND, linewidth=0, zorder=0)
        score = _score(results, model, benchmark)
        if score is None:
            across = axis.get_yaxis_transform()
            axis.text(0.5, position, MISSING, transform=across, ha="center", va="center")
            continue
        value, error = score[0] * 100, score[1] * 100
        bar = None if math.isnan(error) else error
        axis.errorbar(value, position, xerr=bar, fmt="o", ms=5, color=colours[methods[model]])
    for model, dashes in _reference_lines(results).items():
        score = _score(results, model, benchmark)
        if score is not None:
            axis.axvline(score[0] * 100, color=MUTED, linewidth=1.2, linestyle=dashes, zorder=1)
    # "mmlu (3 of 57 subsets)" has no room here; the table above names the part.
    name = "average" if benchmark is None else clipped(benchmark.partition(" (")[0], 14)
    axis.set_title(name, fontsize=10, fontweight="bold" if benchmark is None else "normal")
    axis.set_yticks(range(len(models)), [clipped(model) for model in models])
    axis.set_ylim(len(models) - 0.5, -0.5)
    axis.margins(x=0.12)
    axis.locator_params(axis="x", nbins=3, integer=True)
    bare(axis)


def _accuracy_legend(figure: Figure, results: RunResults) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker="o", linestyle="", label=clipped(method or "other"))
        for method, colour in _method_colours(results).items()
    ]
    handles += [
        Line2D([], [], color=MUTED, linestyle=dashes, label=clipped(model))
        for model, dashes in _reference_lines(results).items()
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False)


def _norm_panel(axis: Axes, title: str, norms: dict[str, float], models: list[str]) -> None:
    positions = [models.index(model) for model in norms]
    values = list(norms.values())
    spread = max(values) - min(values)
    # As many decimals as tell the models apart: weight norms differ by a thousandth.
    decimals = max(0, 1 - math.floor(math.log10(spread))) if spread > 0 else 2
    axis.plot(values, positions, "o", color=COLOURS[0], markersize=6)
    for value, position in zip(values, positions, strict=True):
        axis.axhline(position, color=BAND, linewidth=1.2, zorder=0)
        label = f"   {value:.{decimals}f}"
        axis.text(value, position, label, va="center_baseline", fontsize=8.5)
    percent = spread / (sum(values) / len(values)) * 100
    axis.set_title(f"{title} (largest − smallest: {percent:.2g} % of the mean)", fontsize=10)
    axis.set_yticks(range(len(models)), [clipped(model) for model in models])
    axis.set_ylim(len(models) - 0.5, -0.5)
    axis.margins(x=0.18)
    axis.ticklabel_format(axis="x", useOffset=False)
    axis.locator_params(axis="x", nbins=5)
    bare(axis)


def _coefficient_cells(axis: Axes, merges: list[MergeSummary], models: list[str]) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    shades = colormaps["PuOr_r"]
    for position, merge in enumerate(merges):
        values = merge.coefficients
        mean = sum(values.values()) / len(values)
        for column, model in enumerate(models):
            if model not in values:
                continue
            # White is an equal share of the merge's sum; ± 40 % of it reach the ends of the map.
            share = values[model] / mean - 1 if mean else 0.0
            colour = shades(min(max(0.5 + share * 0.6, 0.15), 0.85))
            axis.add_patch(
                Rectangle((column - 0.48, position - 0.44), 0.96, 0.88, facecolor=colour)
            )
            axis.text(column, position, f"{values[model]:.3f}", ha="center", va="center")
        total = f"{sum(values.values()):.2f}"
        axis.text(len(models), position, total, ha="center", va="center", color=MUTED)
    axis.set_xlim(-0.5, len(models) + 0.5)
    axis.set_ylim(max(len(merges), 1) - 0.5, -0.5)
    axis.set_yticks(range(len(merges)), [clipped(merge.model) for merge in merges])
    axis.set_xticks(range(len(models) + 1), [*(clipped(model, 12) for model in models), "sum"])
    axis.set_xlabel("orange: more than an equal share of the merge's sum, purple: less")
    axis.xaxis.tick_top()
    bare(axis)


def _score(results: RunResults, model: str, benchmark: str | None) -> tuple[float, float] | None:
    if benchmark is None:
        return results.average(model)
    row = results.row(model, benchmark)
    return (row.value, row.standard_error) if row else None


def _method_colours(results: RunResults) -> dict[str, str]:
    merged = [row.method for row in results.rows if row.kind == "merged"]
    methods = dict.fromkeys(merged or [row.method for row in results.rows])
    return {method: COLOURS[index % len(COLOURS)] for index, method in enumerate(methods)}


def _reference_lines(results: RunResults) -> dict[str, Literal[":", "--"]]:
    dashes: dict[str, Literal[":", "--"]] = {"pretrained": ":", "individual": "--"}
    return {row.model: dashes[row.kind] for row in results.rows if row.kind in dashes}
