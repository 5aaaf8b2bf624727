"""A picture of an inspection: where models moved, where they disagree, how far they point apart.

Layers run from left to right in all panels, in the models' order. Drawn by matplotlib's object
interface, in the style of the report's figures.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nan_merge.inspected import Inspection, Part
from nan_merge.publish import explain_write_errors
from pipelines.drawing import COLOURS, INK, MUTED, STYLE, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png", ".pdf")
MAX_LABELS = 48  # of layers, on an axis
MAX_NUMBERED = 8  # models in a matrix whose cells hold their numbers
ROW_INCHES = 0.28
LEAST_SHARE = 1e-6  # in %; less is drawn as this
LOG_RANGE = 20.0  # norms that lie further apart are coloured by their logarithm


def write_plot(found: Inspection, path: Path) -> None:
    """Draw an inspection into a file whose suffix says of what kind.

    Raises:
        OutputError: If it cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with warnings.catch_warnings(), matplotlib.rc_context():
        # A letter that the font lacks is drawn as a box; that is no reason to complain.
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from font")
        matplotlib.rcParams.update({**matplotlib.rcParamsDefault, **STYLE})
        figure = Figure(figsize=(WIDTH, _height(found)), layout="constrained")
        _draw(figure, found)
        buffer = io.BytesIO()
        kind = path.suffix[1:].lower()
        metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata.get(kind))
    with explain_write_errors(path):
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(buffer.getvalue())
        partial.replace(path)


def _height(found: Inspection) -> float:
    return (3.1 if found.base is None else 4.5) + ROW_INCHES * len(found.models)


def _draw(figure: Figure, found: Inspection) -> None:
    has_pairs = found.base is not None and len(found.models) > 1
    heights = [ROW_INCHES * len(found.models) + 0.4, 1.2, 1.2]
    if found.base is None:
        heights.pop()
    widths = [3.2, 1] if has_pairs else [1]
    grid = figure.add_gridspec(
        len(heights), len(widths), height_ratios=heights, width_ratios=widths
    )
    axes = [figure.add_subplot(grid[row, 0]) for row in range(len(heights))]
    _norms(figure, axes[0], found)
    if found.base is not None:
        _conflicts(axes[1], found) if has_pairs else _changed(axes[1], found)
    _means(axes[-1], found)
    for axis in axes:
        axis.set_xlim(-0.5, len(found.layers) - 0.5)
        axis.set_xticks([])
    _label_layers(axes[-1], found.layers)
    if has_pairs:
        _cosines(figure.add_subplot(grid[:2, 1]), found)
        _lengths(figure.add_subplot(grid[2, 1]), found)


def _rows(found: Inspection) -> list[str]:
    return [_clipped(name) for name in found.models]


def _norms(figure: Figure, axis: Axes, found: Inspection) -> None:
    """Heat map: a row per model, a column per layer."""
    from matplotlib.colors import LogNorm, Normalize

    if found.base is None:
        title = "root mean square of the weights, by layer"
        values = [[m.norm / max(m.count, 1) ** 0.5 for m in part.weights] for part in found.layers]
    else:
        title = "length of the task vector in % of the base's weights, by layer"
        places = range(len(found.models))
        values = [[100 * (p.relative_norm(i) or 0.0) for i in places] for p in found.layers]
    positive = [value for column in values for value in column if value > 0] or [1.0]
    wide = max(positive) > LOG_RANGE * min(positive)
    low = min(positive) if wide else 0.0
    scale = (LogNorm if wide else Normalize)(vmin=low, vmax=max(positive))
    cells = [[max(value, low) for value in row] for row in zip(*values, strict=True)]
    image = axis.imshow(cells, aspect="auto", cmap="YlGnBu", norm=scale, interpolation="nearest")
    bar = figure.colorbar(image, ax=axis, pad=0.01, fraction=0.05, aspect=10)
    high = max(positive)
    ticks = [low * (high / low) ** (i / 3) if wide else high * i / 3 for i in range(4)]
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
    bar.minorticks_off()
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.ax.tick_params(length=0, labelsize=8)
    axis.set_yticks(range(len(found.models)), _rows(found))
    _finish(axis, title)


def _conflicts(axis: Axes, found: Inspection) -> None:
    shares = [100 * (part.conflict_share or 0.0) for part in found.layers]
    axis.bar(range(len(shares)), shares, color=COLOURS[0], width=0.8)
    # Of k independent signs, not all are equal with chance 1 - 2 / 2**k.
    chance = 100 * (1 - 2.0 ** (1 - len(found.models)))
    axis.axhline(chance, color=MUTED, linewidth=1, linestyle=":")
    axis.text(len(shares) - 0.5, chance, "independent ", color=MUTED, ha="right", va="bottom")
    axis.set_ylim(0, max([*shares, chance]) * 1.25)
    _finish(axis, "sign conflict: elements raised by one and lowered by another, % of contested")


def _changed(axis: Axes, found: Inspection) -> None:
    shares = [100 * part.changed[0][0] / max(part.num_elements, 1) for part in found.layers]
    axis.bar(range(len(shares)), shares, color=COLOURS[0], width=0.8)
    axis.set_ylim(0, 105)
    _finish(axis, "elements that fine-tuning changed, in %")


def _means(axis: Axes, found: Inspection) -> None:
    """How much of a squared norm is the mean's, of whichever model it is most."""
    series = {"weights": [part.weights for part in found.layers]}
    if found.base is not None:
        series["task vectors"] = [part.task_vectors for part in found.layers]
    places = range(len(found.layers))
    for colour, (name, rows) in zip(COLOURS, series.items(), strict=False):
        shares = [max(100 * max(each.mean_share for each in row), LEAST_SHARE) for row in rows]
        axis.vlines(places, LEAST_SHARE, shares, color=colour, linewidth=0.8, alpha=0.5)
        axis.plot(places, shares, "o", color=colour, markersize=4, label=name)
    axis.set_yscale("log")
    axis.set_ylim(LEAST_SHARE / 2, 300)
    axis.set_yticks([1e-6, 1e-4, 1e-2, 1, 100], ["1e-6", "1e-4", "0.01", "1", "100"])
    axis.minorticks_off()
    axis.legend(
        loc="lower right", bbox_to_anchor=(1, 0.94), ncols=2, frameon=False, fontsize=8,
        handletextpad=0, columnspacing=1,
    )  # fmt: skip
    _finish(axis, "zero-mean check: the mean's share of the squared norm in %")


def _cosines(axis: Axes, found: Inspection) -> None:
    from matplotlib import colormaps

    size = len(found.models)
    shades = colormaps["PuOr_r"].with_extremes(bad="#eef1f4")
    values = [
        [None if i == j else found.whole.cosine(i, j) for j in range(size)] for i in range(size)
    ]
    known = [abs(value) for row in values for value in row if value is not None]
    most = max([*known, 0.05])
    cells = [[float("nan") if value is None else value for value in row] for row in values]
    axis.imshow(cells, cmap=shades, vmin=-most, vmax=most, interpolation="nearest")
    for i, row in enumerate(values) if size <= MAX_NUMBERED else ():
        for j, value in enumerate(row):
            if value is not None:
                dark = abs(value) > 0.6 * most
                colour = "white" if dark else INK
                axis.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    rows = [f"{_clipped(name, 14)}  {place}" for place, name in enumerate(found.models, start=1)]
    axis.set_xticks(range(size), [str(place + 1) for place in range(size)])
    axis.set_yticks(range(size), rows)
    _finish(axis, "cosine between task vectors")


def _lengths(axis: Axes, found: Inspection) -> None:
    """The whole models' task vectors; NAN on task vectors goes by the inverse of these."""
    lengths = [moments.norm for moments in found.whole.task_vectors]
    axis.barh(range(len(lengths)), lengths, color=COLOURS[0], height=0.7)
    for place, length in enumerate(lengths):
        axis.text(length, place, f" {length:.3g}", va="center_baseline", fontsize=8)
    axis.set_yticks(range(len(lengths)), [_clipped(name, 14) for name in found.models])
    axis.set_ylim(len(lengths) - 0.5, -0.5)
    axis.set_xlim(0, 1.2 * max([*lengths, 1e-9]))
    axis.set_xticks([])
    _finish(axis, "length of task vectors")


def _label_layers(axis: Axes, layers: Sequence[Part]) -> None:
    """Numbers of the layers, and the names of what stands alone."""
    stacks = {name.rpartition(".")[0] for name in map(_name, layers) if _is_layer(name)}
    step = -(-len(layers) // MAX_LABELS)
    labels: dict[int, str] = {}
    for place, name in enumerate(map(_name, layers)):
        if not _is_layer(name):
            parts = name.removesuffix(".weight").split(".")
            labels[place] = _clipped(".".join(parts[-2 if parts[-1] == "bias" else -1 :]), 16)
        elif int(name.rpartition(".")[2]) % step == 0:
            labels[place] = name.rpartition(".")[2] if len(stacks) == 1 else _clipped(name, 24)
    words = any(not label.isdecimal() for label in labels.values())
    axis.set_xticks(list(labels), list(labels.values()), rotation=90 if words else 0)


def _name(part: Part) -> str:
    return part.name


def _is_layer(name: str) -> bool:
    return name.rpartition(".")[2].isdecimal()


def _clipped(name: str, width: int = 20) -> str:
    name = " ".join(name.split())
    return name if len(name) <= width else name[: width - 1] + "…"


def _finish(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=9.5, loc="left")
    axis.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axis.tick_params(length=0)
