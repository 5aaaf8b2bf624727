"""The picture of benchmarks/growth.py: seconds above, private memory below, a column per axis."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from processes import Measured

# Readable on white and on black alike, for the background is left open.
INK = "#808890"
COLOURS = ("#3d8fd1", "#e07b39", "#4aa564")


@dataclass(frozen=True)
class Point:
    """One merge of synthetic models, and where it stands on an axis.

    Attributes:
        place: On the axis.
        label: Of the place.
        size: A key of `synthetic_llama.SIZES`.
        num_models: Fine-tuned models.
        cores: How many it may use.
    """

    place: float
    label: str
    size: str
    num_models: int
    cores: int


@dataclass(frozen=True)
class Axis:
    """What is varied.

    Attributes:
        title: In words.
        points: In order.
    """

    title: str
    points: list[Point]


def draw(
    axes: Sequence[Axis],
    found: Mapping[tuple[Point, str], Measured],
    methods: Sequence[str],
    path: Path,
) -> None:
    """Draw what was measured into a PNG file.

    Args:
        axes: What was varied.
        found: (point, method) -> its rounds.
        methods: A line each.
        path: Where to.
    """
    settings = {
        "font.size": 9,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
        **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), INK),
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with plt.rc_context(settings):
        figure, panels = plt.subplots(
            2, len(axes), figsize=(3.1 * len(axes), 5), sharex="col", sharey="row", squeeze=False
        )
        for axis, (above, below) in zip(axes, panels.T, strict=True):
            for method, colour in zip(methods, COLOURS, strict=False):
                rounds = [found[point, method] for point in axis.points]
                _line(above, axis, [each.seconds for each in rounds], method, colour)
                _line(below, axis, [each.megabytes for each in rounds], method, colour)
            _places(below, axis)
        panels[0][0].set_ylabel("seconds, imports included")
        panels[1][0].set_ylabel("peak private memory, MB")
        for panel in panels.flat:
            panel.set_ylim(bottom=0)
            panel.grid(alpha=0.25)
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper center", ncols=len(methods), frameon=False)
        figure.tight_layout(rect=(0, 0, 1, 0.95))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, transparent=True)
        plt.close(figure)


def _line(
    panel: Axes, axis: Axis, rounds: Sequence[Sequence[float]], method: str, colour: str
) -> None:
    """The median of each point, and its least and most as a bar."""
    places = [point.place for point in axis.points]
    middle = [statistics.median(values) for values in rounds]
    least = [m - min(values) for m, values in zip(middle, rounds, strict=True)]
    most = [max(values) - m for m, values in zip(middle, rounds, strict=True)]
    panel.errorbar(
        places,
        middle,
        [least, most],
        color=colour,
        marker="o",
        markersize=4,
        capsize=2,
        label=method,
    )


def _places(panel: Axes, axis: Axis) -> None:
    panel.set_xticks([point.place for point in axis.points], [p.label for p in axis.points])
    if len(axis.points) == 1:
        panel.margins(x=0.5)
    panel.set_xlabel(axis.title)
