"""What the report shows of a sweep: of each entry a figure, and the numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipelines.results import ResultRow, RunResults
from pipelines.sheet import MISSING, Cell, Line, Sheet, spread_in_percent
from pipelines.sweep_axes import Layout, layouts
from pipelines.sweep_plots import Measure, dots_plot, heat_map, line_plot
from pipelines.sweep_table import SELECTED

AVERAGE = "average"
SELECTED_WORDS = "is the best on the dev split"


@dataclass(frozen=True)
class Figure:
    """A drawing with what stands above and below it.

    Attributes:
        name: Of its file.
        heading: What it holds of the entry; empty if all.
        svg: The drawing.
    """

    name: str
    heading: str
    svg: str


@dataclass(frozen=True)
class SweepSection:
    """One entry of a sweep.

    Attributes:
        title: The entry's name.
        figures: One, or several where more than two keys vary.
        caption: How to read them.
        sheet: The same numbers, a line per merge.
    """

    title: str
    figures: tuple[Figure, ...]
    caption: str
    sheet: Sheet


def sweep_sections(results: RunResults) -> list[SweepSection]:
    """A section for each entry of the sweep in which something varies; none without a sweep.

    Args:
        results: With the rows of every merge, not only of those that tables show.
    """
    rows = {(row.model, row.benchmark): row for row in results.rows}
    return [
        _section(results, layout, f"sweep{number}", rows)
        for number, layout in enumerate(layouts(results.sweep), 1)
    ]


def _section(
    results: RunResults,
    layout: Layout,
    prefix: str,
    rows: Mapping[tuple[str, str], ResultRow],
) -> SweepSection:
    measures = _measures(results, layout, rows)
    selected = next((name for name in layout.places if results.sweep[name].is_selected), None)
    return SweepSection(
        title=layout.group,
        figures=tuple(_figures(layout, measures, selected, prefix)),
        caption=_caption(layout, measures, selected),
        sheet=_sheet(layout, measures, selected),
    )


def _measures(
    results: RunResults, layout: Layout, rows: Mapping[tuple[str, str], ResultRow]
) -> list[Measure]:
    """What the search saw, then the average over the other samples, then each benchmark."""
    names = list(layout.places)
    points = {name: results.sweep[name] for name in names}
    is_average = all(math.isclose(each.objective, each.dev) for each in results.sweep.values())
    dev = Measure(
        "dev average" if is_average else "dev objective",
        {name: point.objective * 100 for name, point in points.items()},
        # The error of another objective than the average is not kept.
        {name: point.dev_error * 100 if is_average else math.nan for name, point in points.items()},
    )
    averages = {name: found for name in names if (found := results.average(name))}
    measures = [
        dev,
        Measure(
            AVERAGE,
            {name: found[0] * 100 for name, found in averages.items()},
            {name: found[1] * 100 for name, found in averages.items()},
            is_main=True,
        ),
    ]
    for benchmark in results.benchmarks():
        own = {name: rows[name, benchmark] for name in names if (name, benchmark) in rows}
        measures.append(
            Measure(
                benchmark,
                {name: row.value * 100 for name, row in own.items()},
                {name: row.standard_error * 100 for name, row in own.items()},
            )
        )
    return measures


def _figures(
    layout: Layout, measures: Sequence[Measure], selected: str | None, prefix: str
) -> list[Figure]:
    if not layout.panes:
        alt = _alt("Dots", layout, measures, selected)
        return [Figure(prefix, "", dots_plot(layout, measures[1], selected, prefix, alt))]
    if layout.down is None:
        alt = _alt("Lines", layout, measures, selected)
        return [Figure(prefix, "", line_plot(layout, measures, selected, prefix, alt))]
    found: list[Figure] = []
    for number, pane in enumerate(layout.panes, 1):
        name = prefix if len(layout.panes) == 1 else f"{prefix}-{number}"
        alt = _alt("Heat maps", layout, measures, selected, pane.fixed)
        svg = heat_map(layout, pane, measures, selected, name, alt)
        found.append(Figure(name, pane.fixed, svg))
    return found


def _alt(
    kind: str,
    layout: Layout,
    measures: Sequence[Measure],
    selected: str | None,
    fixed: str = "",
) -> str:
    """What a figure shows, for those who do not see it; the table has the numbers."""
    average = measures[1].values
    keys = [axis.name for axis in layout.axes]
    over = f"{keys[1]} downwards and {keys[0]} across" if kind == "Heat maps" else ", ".join(keys)
    text = f"{kind} of {layout.group}{f' with {fixed}' if fixed else ''}: accuracy over {over}"
    if kind != "Dots":
        text += f", {len(measures)} panels"
    if average:
        text += f". Averages from {min(average.values()):.1f} to {max(average.values()):.1f} %"
    if selected is not None:
        text += f"; {layout.setting(selected)} {SELECTED_WORDS}"
        text += f", with an average of {average[selected]:.1f} %" if selected in average else ""
    return f"{text}. The table below holds the numbers."


def _caption(layout: Layout, measures: Sequence[Measure], selected: str | None) -> str:
    dev = measures[0].title
    if not layout.panes:
        text = "Each dot is a merge: its average, on samples that the search never saw, against "
        text += "one of the values that vary. "
    else:
        text = f"One panel per benchmark, on samples that the search never saw; {dev}: what the "
        text += "search saw and selected by. "
    if layout.panes and layout.down is None:
        text += "Scales do not start at zero; bars are one standard error. "
    elif layout.panes:
        text += "In %; each panel has colours of its own, from its lowest to its highest number, "
        text += (
            "which stand above it. "
            if len(layout.panes) == 1
            else "which are the same in all figures. "
        )
        text += "Without a cell: not made, failed, or the same merge as another. "
    if selected is not None:
        mark = "Framed" if layout.panes and layout.down is not None else "Ringed"
        text += f"{mark}: {layout.setting(selected)}, which {SELECTED_WORDS}."
    return text.strip()


def _sheet(layout: Layout, measures: Sequence[Measure], selected: str | None) -> Sheet:
    lines: list[Line] = []
    names = [name for pane in layout.panes for _, name in sorted(pane.cells.items())]
    for name in names or layout.places:
        label = layout.setting(name) + SELECTED * (name == selected)
        lines.append(Line(label, tuple(_cell(measure, name) for measure in measures)))
    caption = "In %; ±: one standard error over sources, of averages. "
    caption += "†: the best of the entry on the dev split." if selected is not None else ""
    columns = tuple(measure.title for measure in measures)
    return Sheet(layout.group, "merge", columns, tuple(lines), caption.strip())


def _cell(measure: Measure, name: str) -> Cell:
    if name not in measure.values:
        return Cell(MISSING)
    error = measure.errors[name]
    has_error = measure.is_main or measure.title == "dev average"
    spread = spread_in_percent(error / 100) if has_error else ""
    return Cell(f"{measure.values[name]:.1f}", spread)
