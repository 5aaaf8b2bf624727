"""Figures of a sweep: lines where one key varies, heat maps where two do, dots for loose draws."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.drawing import BAND, COLOURS, INK, MUTED, WIDTH, bare, clipped, drawing, svg_of
from pipelines.sweep_axes import Axis, Layout, Pane

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = (0.5, 0.34)
"""Inches of a cell, across and down."""
LEAST_NUMBERED = 0.38
"""Inches across below which a cell has no room for its number."""
LABEL_INCHES = 0.085
"""Of a letter beside a heat map."""
MOST_LABELS = 24
LINE_PANELS, LINE_HEIGHT = 4, 1.9
LOG_RATIO = 30.0
"""Numbers that lie further apart, most of them near the lower end, are drawn on a log axis."""


@dataclass(frozen=True)
class Measure:
    """Something that is known of every merge of a sweep, and has a panel of its own.

    Attributes:
        title: Above the panel.
        values: Merge -> percent.
        errors: Merge -> one standard error in percent points; nan where it is unknown.
        is_main: Whether it stands out.
    """

    title: str
    values: Mapping[str, float]
    errors: Mapping[str, float]
    is_main: bool = False


def line_plot(
    layout: Layout, measures: Sequence[Measure], selected: str | None, prefix: str, alt: str
) -> str:
    """One panel per measure over the one key that varies, with one standard error."""
    num_rows, num_columns = _evenly(len(measures), LINE_PANELS)
    with drawing(num_rows * LINE_HEIGHT + 0.4) as figure:
        _spread_rows(figure)
        axes = figure.subplots(num_rows, num_columns, squeeze=False)
        _hide_unused(axes.flat, len(measures))
        for axis, measure in zip(axes.flat, measures, strict=False):
            _line(axis, layout, measure, selected)
        figure.supxlabel(clipped(layout.across.name), fontsize=9)
        return svg_of(figure, prefix, alt)


def heat_map(
    layout: Layout,
    pane: Pane,
    measures: Sequence[Measure],
    selected: str | None,
    prefix: str,
    alt: str,
) -> str:
    """One panel per measure, coloured by it; the panes of a layout share each measure's colours."""
    across, down = layout.across, layout.down
    assert down is not None
    labels = LABEL_INCHES * max(len(clipped(label, 24)) for label in down.labels) + 0.3
    wanted = CELL[0] * len(across.values) + 0.25
    num_rows, num_columns = _evenly(len(measures), max(1, int((WIDTH - labels) / wanted)))
    cell = min((WIDTH - labels) / num_columns - 0.25, 2 * wanted) / len(across.values)
    height = CELL[1] * len(down.values) + 0.75
    with drawing(num_rows * height + 0.5) as figure:
        _spread_rows(figure)
        axes = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
        _hide_unused(axes.flat, len(measures))
        for axis, measure in zip(axes.flat, measures, strict=False):
            _cells(axis, layout, pane, measure, selected, cell >= LEAST_NUMBERED)
        # Where the last row of panels is short, the labels belong below the one above it.
        for axis in axes.flat[max(0, len(measures) - num_columns) : len(measures)]:
            axis.tick_params(labelbottom=True)
        figure.supxlabel(clipped(across.name), fontsize=9)
        figure.supylabel(clipped(down.name), fontsize=9)
        return svg_of(figure, prefix, alt)


def dots_plot(layout: Layout, measure: Measure, selected: str | None, prefix: str, alt: str) -> str:
    """One panel per key that varies: a measure of every merge against its value there."""
    names = [name for name in layout.places if name in measure.values]
    num_rows, num_columns = _evenly(len(layout.axes), LINE_PANELS)
    with drawing(num_rows * (LINE_HEIGHT + 0.3) + 0.3) as figure:
        axes = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
        _hide_unused(axes.flat, len(layout.axes))
        for axis, key in zip(axes.flat, layout.axes, strict=False):
            places = _positions(axis, key)
            x = [places[layout.places[name][key.key]] for name in names]
            y = [measure.values[name] for name in names]
            axis.plot(x, y, "o", color=COLOURS[0], markersize=4.5, alpha=0.75)
            if selected in names:
                chosen = names.index(selected)
                _ring(axis, x[chosen], y[chosen])
            axis.set_title(clipped(key.name), fontsize=10)
            bare(axis)
        figure.supylabel(f"{measure.title} in %", fontsize=9)
        return svg_of(figure, prefix, alt)


def _line(axis: Axes, layout: Layout, measure: Measure, selected: str | None) -> None:
    cells = layout.panes[0].cells
    names = [cells[place] for place in sorted(cells) if cells[place] in measure.values]
    places = _positions(axis, layout.across)
    x = [places[layout.places[name][layout.across.key]] for name in names]
    y = [measure.values[name] for name in names]
    errors = [0.0 if math.isnan(measure.errors[name]) else measure.errors[name] for name in names]
    # Words have no order, so no line leads from one to the next.
    style = "o-" if layout.across.is_numeric else "o"
    axis.errorbar(
        x, y, yerr=errors, fmt=style, color=COLOURS[0], ms=4, linewidth=1.2, elinewidth=0.8
    )
    if selected in names:
        chosen = names.index(selected)
        _ring(axis, x[chosen], y[chosen])
    axis.locator_params(axis="y", nbins=4)
    _title(axis, measure)
    bare(axis)


def _positions(axis: Axes, key: Axis) -> list[float]:
    """Where an axis's values stand: at themselves if they are numbers, else one after the other."""
    if not key.is_numeric:
        _label_places(axis, key)
        axis.margins(x=0.15)
        return [float(place) for place in range(len(key.values))]
    values = [float(value) for value in key.values]
    middle = values[len(values) // 2]
    if values[0] > 0 and values[-1] / values[0] >= LOG_RATIO and middle < values[-1] / 5:
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(numticks=6))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.locator_params(axis="x", nbins=5)
    return values


def _cells(
    axis: Axes,
    layout: Layout,
    pane: Pane,
    measure: Measure,
    selected: str | None,
    is_numbered: bool,
) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    across, down = layout.across, layout.down
    assert down is not None
    known = [measure.values[name] for name in layout.places if name in measure.values]
    scale, shades = Normalize(min(known, default=0), max(known, default=1)), colormaps["viridis"]
    axis.set_facecolor(BAND)
    for (row, column), name in pane.cells.items():
        if name not in measure.values:
            continue
        value = measure.values[name]
        colour = shades(float(scale(value)) if scale.vmin != scale.vmax else 0.5)
        axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, linewidth=0))
        if is_numbered:
            ink = "white" if _luminance(colour) < 0.179 else "black"
            axis.text(column, row, f"{value:.1f}", ha="center", va="center", color=ink, fontsize=8)
        if name == selected:
            _frame(axis, column, row)
    axis.set_xlim(-0.5, len(across.values) - 0.5)
    axis.set_ylim(len(down.values) - 0.5, -0.5)
    _label_places(axis, across)
    shown = _shown_places(len(down.values))
    axis.set_yticks(shown, [clipped(down.labels[place], 24) for place in shown])
    _title(axis, measure, known)
    bare(axis)
    axis.spines["bottom"].set_visible(False)


def _label_places(axis: Axes, key: Axis) -> None:
    shown = _shown_places(len(key.values))
    labels = [clipped(key.labels[place], 14) for place in shown]
    longest = max(map(len, labels))
    axis.set_xticks(shown, labels, rotation=0 if longest * len(labels) <= 44 else 40)
    if longest * len(labels) > 44:
        for label in axis.get_xticklabels():
            label.set_horizontalalignment("right")


def _shown_places(count: int) -> list[int]:
    """Places whose labels have room."""
    return list(range(0, count, -(-count // MOST_LABELS)))


def _frame(axis: Axes, column: int, row: int) -> None:
    """A frame that is seen on dark and on light cells."""
    from matplotlib.patches import Rectangle

    for width, colour in ((3.6, "white"), (1.6, "black")):
        axis.add_patch(
            Rectangle(
                (column - 0.45, row - 0.43), 0.9, 0.86, fill=False, edgecolor=colour, lw=width
            )
        )


def _ring(axis: Axes, x: float, y: float) -> None:
    axis.plot([x], [y], "o", ms=10, markerfacecolor="none", markeredgecolor=INK, mew=1.6)


def _title(axis: Axes, measure: Measure, values: Sequence[float] = ()) -> None:
    weight = "bold" if measure.is_main else "normal"
    title = clipped(measure.title.partition(" (")[0], 24)
    axis.set_title(title, fontsize=10, fontweight=weight, pad=14 if values else None)
    if values:
        text = f"{min(values):.1f} to {max(values):.1f}"
        axis.text(0.5, 1.02, text, transform=axis.transAxes, ha="center", fontsize=8, color=MUTED)


def _luminance(colour: Sequence[float]) -> float:
    """Relative luminance of a colour (WCAG 2.2): below 0.179 white stands out more than black."""
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour[:3]
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _evenly(count: int, most: int) -> tuple[int, int]:
    """Rows and columns for so many panels, at most so many in a row, the last row as full as it
    can be.
    """
    num_rows = -(-count // most)
    return num_rows, -(-count // num_rows)


def _spread_rows(figure: Figure) -> None:
    """Some room between an axis's labels and the next title."""
    engine: Any = figure.get_layout_engine()
    engine.set(h_pad=0.09)


def _hide_unused(axes: Iterable[Axes], used: int) -> None:
    for axis in list(axes)[used:]:
        axis.set_visible(False)
