"""A comparison of many runs as one HTML page, in the frame of a run's report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nan_merge.publish import write_text_atomically
from pipelines.compare import ComparedModel, Comparison
from pipelines.compare_view import benchmarks_sheet, problems_sheet, summary_sheet
from pipelines.drawing import BAND, COLOURS, MUTED, bare, clipped, drawing, svg_of
from pipelines.pages import render
from pipelines.sheet import MISSING, Cell, Line, Sheet

MOST_DRAWN = 60
"""Models of the figure; the tables have all."""
ROW_INCHES = 0.22


def write_comparison_page(found: Comparison, folder: Path) -> Path:
    """Write ``comparison.html`` to ``folder``; returns its path.

    Raises:
        MissingExtraError: If jinja2 or matplotlib is not installed.
    """
    drawn = _drawn(found)
    page = render(
        "comparison.html.jinja",
        title=f"Compared with {found.baseline}",
        summary=_summary(found),
        summary_sheet=summary_sheet(found),
        differences_svg=_differences_plot(found, drawn) if drawn else "",
        differences_caption=_caption(found, drawn),
        by_benchmark=benchmarks_sheet(found),
        by_problem=problems_sheet(found),
        sources=_sources_sheet(found),
        notes=found.notes,
    )
    write_text_atomically(folder / "comparison.html", page)
    return folder / "comparison.html"


def _summary(found: Comparison) -> str:
    runs = len(set(found.places.values()))
    better = sum(_is_sure(model) == 1 for model in found.models)
    worse = sum(_is_sure(model) == -1 for model in found.models)
    others = len(found.models) - 1
    return (
        f"{others:,} models of {runs:,} run{'s' * (runs != 1)} are compared with {found.baseline} "
        f"on {len(found.benchmarks)} benchmarks, paired by sample. The 95 % interval of {better:,} "
        f"lies above no difference, that of {worse:,} below, and {others - better - worse:,} "
        "cannot be told apart from it. Among many models some intervals miss by chance: about one "
        "in twenty."
    )


def _is_sure(model: ComparedModel) -> int:
    """1 if a model's average is better, -1 if it is worse, 0 if that is not sure."""
    if model.average is None:
        return 0
    interval = model.average.interval
    return int(interval.low > 0) - int(interval.high < 0)


def _drawn(found: Comparison) -> list[ComparedModel]:
    """Models with an average, highest difference first."""
    known = [model for model in found.models if model.average is not None]
    return sorted(known, key=_difference, reverse=True)[:MOST_DRAWN]


def _difference(model: ComparedModel) -> float:
    return model.average.difference.value if model.average is not None else 0.0


def _caption(found: Comparison, drawn: Sequence[ComparedModel]) -> str:
    others = sum(model.average is not None for model in found.models) - len(drawn)
    text = f"Difference of the average to {found.baseline} in points, with its 95 % interval."
    return text + (f" The highest {len(drawn)}; {others:,} more are in the table." * (others > 0))


def _differences_plot(found: Comparison, drawn: Sequence[ComparedModel]) -> str:
    with drawing(ROW_INCHES * len(drawn) + 0.6) as figure:
        axis = figure.subplots()
        for place, model in enumerate(drawn):
            assert model.average is not None
            value, interval = model.average.difference.value, model.average.interval
            if place % 2 == 0:
                axis.axhspan(place - 0.5, place + 0.5, color=BAND, linewidth=0, zorder=0)
            colour = COLOURS[0] if _is_sure(model) else MUTED
            ends = [interval.low * 100, interval.high * 100]
            axis.plot(ends, [place, place], "-", color=colour, linewidth=1.4)
            axis.plot([value * 100], [place], "o", color=colour, markersize=4.5)
        axis.axvline(0, color=MUTED, linewidth=1, linestyle="--")
        axis.set_yticks(range(len(drawn)), [clipped(model.model) for model in drawn])
        axis.set_ylim(len(drawn) - 0.5, -0.5)
        axis.set_xlabel(f"points more or less than {clipped(found.baseline)}; grey: may be none")
        bare(axis)
        low, high = _difference(drawn[-1]) * 100, _difference(drawn[0]) * 100
        alt = (
            f"Differences of {len(drawn)} models to {found.baseline}, from {low:+.1f} to "
            f"{high:+.1f} points, highest {drawn[0].model}. The table holds the numbers."
        )
        return svg_of(figure, "differences", alt)


def _sources_sheet(found: Comparison) -> Sheet:
    """Where each model's answers lie."""
    lines = tuple(
        Line(model.model, (Cell(model.kind or MISSING), Cell(str(found.places[model.model]))))
        for model in found.models
    )
    caption = "`nan-merge predictions show FOLDER` prints prompt, answer and verdict of a sample."
    title = "Where the numbers come from"
    return Sheet(title, "model", ("kind", "folder"), lines, caption)
