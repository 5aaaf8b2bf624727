"""Describe models on the command line: tables, a picture, JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nan_merge.inspected import Inspection, Moments, Part
from nan_merge.inspection import inspect_models
from pipelines.extras import require
from pipelines.inspect_plot import SUFFIXES, write_plot
from pipelines.merge import num_workers, show_bytes
from pipelines.output_files import check_output_file, write_json
from pipelines.progress import RunProgress

MAX_MODELS_APART = 4  # columns of a table by layer; of more models it shows the range
MAX_LISTED = 5
NAME_WIDTH = 32


def inspect_command(
    models: Sequence[str],
    base: str | None,
    console: Console,
    *,
    show_layers: bool = False,
    plot: Path | None = None,
    json_file: Path | None = None,
) -> None:
    """Read models once and show what they look like."""
    check_output_file(json_file, [".json"])
    check_output_file(plot, SUFFIXES)
    require(["matplotlib"] if plot else [])
    with RunProgress(console).stage("inspect", 1000) as bar:
        found = inspect_models(models, base, num_workers(), show_bytes(bar))
    if json_file is not None:
        write_json(json_file, found.as_json())
    if plot is not None:
        write_plot(found, plot)
    for table in tables(found, show_layers):
        console.print(table)
    for line in notes(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def tables(found: Inspection, show_layers: bool) -> list[Table]:
    """Weights; with a base, task vectors and how they agree; by layer if asked for."""
    everyone = [found.base, *found.models] if found.base is not None else list(found.models)
    shown = [_weights_table(everyone, found.whole.weights)]
    if found.base is not None:
        shown.append(_task_vectors_table(found))
        if len(found.models) > 1:
            shown.append(_pairs_table(found))
    if show_layers:
        shown.append(layers_table(found))
    return shown


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        # Numbers are never broken; names give way.
        table.add_column(
            column, justify="right" if place else "left", overflow="ellipsis", no_wrap=place > 0
        )
    return table


def _name(name: str) -> str:
    return escape(name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 1] + "…")


def _weights_table(names: Sequence[str], weights: Sequence[Moments]) -> Table:
    title = f"Weights ({weights[0].count:,} elements)"
    table = _table(title, "model", "norm", "mean", "std", "mean/std", "t", "mean's share of norm²")
    for name, moments in zip(names, weights, strict=True):
        cells = f"{moments.norm:.6g}", f"{moments.mean:.3g}", f"{moments.std:.3g}"
        table.add_row(_name(name), *cells, *_mean_cells(moments))
    return table


def _mean_cells(moments: Moments) -> list[str]:
    cells = [moments.mean_over_std, moments.t_ratio]
    texts = ["-" if value is None else f"{value:.3g}" for value in cells]
    return [*texts, _percent(moments.mean_share)]


def _percent(share: float | None) -> str:
    if share is None:
        return "-"
    percent = 100 * share
    return f"{percent:.2f} %" if percent >= 0.01 or percent == 0 else f"{percent:.0e} %"


def _task_vectors_table(found: Inspection) -> Table:
    columns = ("norm", "of base's", "changed", "mean/std", "t", "mean's share of norm²")
    table = _table("Task vectors", "model", *columns)
    part = found.whole
    for place, (name, moments) in enumerate(zip(found.models, part.task_vectors, strict=True)):
        changed = part.changed[place][place] / max(part.num_elements, 1)
        table.add_row(
            _name(name),
            f"{moments.norm:.6g}",
            _percent(part.relative_norm(place)),
            _percent(changed),
            *_mean_cells(moments),
        )
    return table


def _pairs_table(found: Inspection) -> Table:
    title = "Pairs of task vectors: cosine, share of opposite signs"
    table = _table(title, "", *(_name(name) for name in found.models[1:]))
    table.columns[0].no_wrap = True
    for one, name in enumerate(found.models[:-1]):
        cells = ["" for _ in range(one)]
        for other in range(one + 1, len(found.models)):
            cosine, opposed = found.whole.cosine(one, other), found.whole.opposed_share(one, other)
            if cosine is None or opposed is None:
                cells.append("-")
            else:
                cells.append(f"{cosine:+.2f} {100 * opposed:.0f} %")
        table.add_row(_name(name), *cells)
    return table


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def layers_table(found: Inspection) -> Table:
    """A row per layer: how far each model moved, and how the models agree there."""
    pairs = ("cosines", "sign conflict") if found.base is not None and len(found.models) > 1 else ()
    what = "norm" if found.base is None else "τ of base's"
    names = [f"{what}\n{_name(name)}" for name in found.models]
    apart = len(names) <= MAX_MODELS_APART
    columns = names if apart else [f"{what}, all models"]
    table = _table("By layer", "layer", "elements", *columns, *pairs)
    for layer in found.layers:
        numbers, show = _lengths(layer, found)
        cells = [show(number) for number in numbers]
        if not apart:
            cells = [f"{show(min(numbers))} to {show(max(numbers))}"]
        agreement = [_cosine_range(layer), _percent(layer.conflict_share)] if pairs else []
        table.add_row(escape(layer.name), f"{layer.num_elements:,}", *cells, *agreement)
    return table


def _lengths(layer: Part, found: Inspection) -> tuple[list[float], Callable[[float], str]]:
    """Of each model in one layer, and how to write such a number."""
    if found.base is None:
        return [moments.norm for moments in layer.weights], lambda norm: f"{norm:.4g}"
    return [layer.relative_norm(place) or 0.0 for place in range(len(found.models))], _percent


def _cosine_range(layer: Part) -> str:
    places = range(len(layer.task_vectors))
    found = [layer.cosine(one, other) for one in places for other in range(one)]
    known = [value for value in found if value is not None]
    if not known:
        return "-"
    low, high = _cosine(min(known)), _cosine(max(known))
    return low if low == high else f"{low} to {high}"


def notes(found: Inspection) -> list[str]:
    """What the numbers mean for a merge."""
    share = max(moments.mean_share for moments in found.whole.weights)
    lines = [
        f"Zero mean: the mean makes up at most {_percent(share)} of a squared weight norm"
        + _worst_layer(found)
        + ". NAN takes it for 0. (t is as if elements were independent, which they are not.)"
    ]
    if found.base is None:
        lines.append("Without --base BASE nothing is known of task vectors and sign conflicts.")
    elif len(found.models) > 1:
        lines.append(
            f"Sign conflict: of {found.whole.num_contested:,} elements that at least two models "
            f"changed, {_percent(found.whole.conflict_share)} were raised by one and lowered by "
            "another."
        )
    if found.left_out:
        names = ", ".join(found.left_out[:MAX_LISTED])
        more = len(found.left_out) - MAX_LISTED
        lines.append(
            f"Left out, as not all models have them or they hold no floats: {names}"
            + (f" and {more} more." if more > 0 else ".")
        )
    return lines


def _worst_layer(found: Inspection) -> str:
    worst, name = max((max(m.mean_share for m in part.weights), part.name) for part in found.layers)
    return f" (at most {_percent(worst)} in one layer, {name})" if len(found.layers) > 1 else ""
