"""What varies in a sweep, laid out for figures: on a line, on two axes, or as loose draws."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.results import SweepPoint
from pipelines.sweep_points import short_keys, value_words

MOST_PANES = 12
"""With more combinations of what is on no axis, nobody compares the panes."""
LEAST_FILLED = 0.4
"""Share of cells that hold a merge, below which merges are draws and no grid."""


@dataclass(frozen=True)
class Axis:
    """A key that varies, with its values in order.

    Attributes:
        key: As under `vary`, e.g. "coefficients.lambda".
        name: Its short form, e.g. "lambda".
        values: Ascending if they are numbers, else in the order in which they come.
    """

    key: str
    name: str
    values: tuple[Any, ...]

    @property
    def is_numeric(self) -> bool:
        """Whether all values are numbers."""
        return all(map(_is_number, self.values))

    @property
    def labels(self) -> list[str]:
        """The values in words."""
        return [value_words(value) for value in self.values]

    def place(self, value: Any) -> int:
        """Which of the values it is."""
        return [_content(each) for each in self.values].index(_content(value))


@dataclass(frozen=True)
class Pane:
    """Merges of one entry that differ along the axes alone.

    Attributes:
        fixed: What else varies in the entry, in words; empty if nothing does.
        cells: (place on `down`, place on `across`) -> the merge's name; `down` is 0 if there is
            none.
    """

    fixed: str
    cells: Mapping[tuple[int, int], str]


@dataclass(frozen=True)
class Layout:
    """How the merges of one entry of a sweep are drawn.

    Attributes:
        group: The entry.
        axes: All that varies; those that a figure is drawn along come first.
        panes: One for each combination of what is on no axis; none if the merges are no grid, and
            each axis has a panel of its own.
        places: Merge -> key -> place of its value on that axis.
    """

    group: str
    axes: tuple[Axis, ...]
    panes: tuple[Pane, ...]
    places: Mapping[str, Mapping[str, int]]

    @property
    def across(self) -> Axis:
        """From left to right."""
        return self.axes[0]

    @property
    def down(self) -> Axis | None:
        """Downwards; None if one key varies alone."""
        return self.axes[1] if len(self.axes) > 1 else None

    def setting(self, name: str) -> str:
        """What varies and its values in a merge, in words."""
        return _setting(self.axes, self.places[name])


def layouts(points: Mapping[str, SweepPoint]) -> list[Layout]:
    """One layout for each entry in which something varies, in the order of the entries.

    Where more than two keys vary, the axes are those with the most values, numbers before words:
    so the fewest panes are left, and a trend along an axis can be seen.
    """
    groups: dict[str, dict[str, SweepPoint]] = {}
    for name, point in points.items():
        groups.setdefault(point.group, {})[name] = point
    found = [_layout(group, members) for group, members in groups.items()]
    return [layout for layout in found if layout is not None]


def _layout(group: str, points: Mapping[str, SweepPoint]) -> Layout | None:
    axes = _axes(points.values())
    if not axes:
        return None
    places = {
        name: {axis.key: axis.place(point.values[axis.key]) for axis in axes}
        for name, point in points.items()
    }
    panes = _panes(places, axes[:2], axes[2:])
    cells = len(panes) * math.prod(len(axis.values) for axis in axes[:2])
    is_grid = len(panes) <= MOST_PANES and len(points) >= LEAST_FILLED * cells
    return Layout(group, tuple(axes), tuple(panes) if is_grid else (), places)


def _axes(points: Iterable[SweepPoint]) -> list[Axis]:
    found: dict[str, dict[str, Any]] = {}
    for point in points:
        for key, value in point.values.items():
            found.setdefault(key, {}).setdefault(_content(value), value)
    names = short_keys(found)
    axes = [
        Axis(key, names[key], _ordered(list(values.values())))
        for key, values in found.items()
        if len(values) > 1
    ]
    return sorted(axes, key=lambda axis: (not axis.is_numeric, -len(axis.values)))


def _panes(
    places: Mapping[str, Mapping[str, int]], axes: Sequence[Axis], others: Sequence[Axis]
) -> list[Pane]:
    found: dict[tuple[int, ...], dict[tuple[int, int], str]] = {}
    fixed: dict[tuple[int, ...], str] = {}
    for name, of in places.items():
        pane = tuple(of[axis.key] for axis in others)
        across, *down = [of[axis.key] for axis in axes]
        found.setdefault(pane, {})[down[0] if down else 0, across] = name
        fixed[pane] = _setting(others, of)
    return [Pane(fixed[pane], found[pane]) for pane in sorted(found)]


def _setting(axes: Iterable[Axis], places: Mapping[str, int]) -> str:
    return ", ".join(f"{axis.name}={axis.labels[places[axis.key]]}" for axis in axes)


def _ordered(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(sorted(values)) if all(map(_is_number, values)) else tuple(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _content(value: Any) -> str:
    """What tells two values apart: lists and sections have no hash, and 1 is 1.0."""
    if _is_number(value):
        return repr(float(value))
    return json.dumps(value, sort_keys=True)
