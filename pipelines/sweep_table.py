"""The tables of a sweep: what the search saw of each merge, and what was not shown to it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nan_merge.publish import write_text_atomically
from pipelines.results import RunResults
from pipelines.sheet import MISSING, Cell, Line, Sheet

SELECTED = " †"
"""Stands after the name of a merge that was selected on the dev split."""
MOST_SHOWN = 24
SELECTED_NOTE = (
    "†: the best of its entry on the dev split; scores here are of the samples that the search "
    "never saw."
)
SWEEP_NAME = "sweep.json"


def shown_results(results: RunResults, most: int = MOST_SHOWN) -> RunResults:
    """The results with no more of a sweep's merges than a table can show.

    What stays: all that is not of the sweep, what was selected, and the best on the dev split.
    """
    ranked = sorted(results.sweep, key=lambda name: -results.sweep[name].objective)
    selected = [name for name, point in results.sweep.items() if point.is_selected]
    shown = set(list(dict.fromkeys([*selected, *ranked]))[: max(most, len(selected))])
    hidden = results.sweep.keys() - shown
    return replace(
        results,
        rows=tuple(row for row in results.rows if row.model not in hidden),
        merges=tuple(merge for merge in results.merges if merge.model not in hidden),
    )


def sweep_sheet(results: RunResults, most: int = MOST_SHOWN) -> Sheet:
    """The merges of a sweep, best on the dev split first: their averages there and elsewhere."""
    ranked = sorted(results.sweep, key=lambda name: -results.sweep[name].objective)
    is_average = all(math.isclose(each.objective, each.dev) for each in results.sweep.values())
    columns = ("dev average", "held-out average")
    lines: list[Line] = []
    for name in ranked[:most]:
        point, average = results.sweep[name], results.average(name)
        held_out = Cell(MISSING)
        if average is not None:
            held_out = Cell(_percent(average[0]), _percent(average[1]))
        label = name + SELECTED * point.is_selected
        dev = Cell(_percent(point.dev), _percent(point.dev_error))
        cells = (dev, held_out) if is_average else (Cell(_percent(point.objective)), dev, held_out)
        lines.append(Line(label, cells))
    caption = (
        "In %; ±: one standard error over sources. †: the best of its entry on the dev split, by "
        + ("average" if is_average else "the objective")
        + ". What was selected for being high there is flattered by it; the held-out average is "
        "not."
    )
    if more := len(ranked) - len(lines):
        caption += f" {more:,} more merges are in {SWEEP_NAME}."
    columns = columns if is_average else ("objective", *columns)
    return Sheet(f"{results.name}: search", "merge", columns, tuple(lines), caption)


def write_sweep(results: RunResults, folder: Path) -> Path:
    """Write ``sweep.json``: every merge of a sweep with its values and averages, in [0, 1]."""
    points: list[dict[str, Any]] = []
    for name, point in results.sweep.items():
        held_out = results.average(name)
        points.append(
            {
                "merge": name,
                **asdict(point),
                "held_out": held_out[0] if held_out else None,
                "held_out_error": held_out[1] if held_out else None,
            }
        )
    content = {"points": points, "failures": results.failures}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_text_atomically(folder / SWEEP_NAME, text)
    return folder / SWEEP_NAME


def _percent(value: float) -> str:
    return f"{value * 100:.1f}"
