"""What the figures of reports share: one style, and how a figure becomes an element of a page.

Figures are made by matplotlib's object interface, without the state of pyplot, and letters are
drawn as paths, so that they look alike wherever the SVG is shown.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nan_merge.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 11.0
"""Inches of every figure; at 100 dots per inch, the width of the report."""
# Okabe and Ito: told apart by people who are colour-blind, and dark enough on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#5d3a9b", "#56b4e9")
INK, MUTED, BAND = "#1f2328", "#57606a", "#f3f5f7"
STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    # Names are data: a dollar sign in one is no formula.
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": "#c9d1d9",
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "svg.fonttype": "path",
    "svg.hashsalt": "nan-merge",
}


def clipped(name: str, width: int = 50) -> str:
    """A name on one line of at most so many letters; of a longer one the middle is left out.

    Merges of a sweep often differ in the end of their names alone.

    >>> clipped("DARE, coefficients=uniform, lambda=0.5", 30)
    'DARE, coefficients=…lambda=0.5'
    """
    name = " ".join(name.split())
    if len(name) <= width:
        return name
    end = width // 3
    return f"{name[: width - 1 - end]}…{name[-end:]}"


def bare(axis: Axes) -> None:
    """Leave of an axis's frame the bottom line alone."""
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(length=0)


@contextmanager
def drawing(height: float) -> Iterator[Figure]:
    """A figure under our style, whatever the user's matplotlibrc says."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib: pip install 'nan-merge[track]'") from error
    with warnings.catch_warnings(), matplotlib.rc_context():
        # A letter that the font lacks is drawn as a box; that is no reason to complain.
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from font")
        matplotlib.rcParams.update({**matplotlib.rcParamsDefault, **STYLE})
        yield Figure(figsize=(WIDTH, height), layout="constrained")


def svg_of(figure: Figure, name: str, description: str) -> str:
    """The figure as an element to put into HTML: ids of its own, scales with the page.

    Args:
        figure: What was drawn.
        name: Begins the ids; must differ between the figures of a page.
        description: What a reader who cannot see the figure is told.
    """
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    # Two figures on a page would share ids, and then clip paths and letters.
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    label = html.escape(description)
    attributes = f'<svg role="img" aria-label="{label}" style="width:100%;height:auto"'
    return text.replace("<svg", attributes, 1)
