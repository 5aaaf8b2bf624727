"""Sums in float64 in ``LANES`` interleaved parts: fast, and the same on every processor.

Element i goes to lane i mod LANES, whatever the width of the processor's vectors; who takes the
lanes adds them up exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nan_merge.kernels.compiled import part

LANES = 256


@part
def add_products(one: Any, two: Any, count: Any, lanes: Any) -> None:
    """Add the products of two vectors to the lanes, element i to lane i mod LANES."""
    for first in range(0, count, LANES):
        ones, twos = one[first : first + LANES], two[first : first + LANES]
        for lane in range(min(LANES, count - first)):
            lanes[lane] += np.float64(ones[lane]) * np.float64(twos[lane])


@part
def add_values(vector: Any, count: Any, lanes: Any) -> None:
    """Add the elements of a vector to the lanes."""
    for first in range(0, count, LANES):
        values = vector[first : first + LANES]
        for lane in range(min(LANES, count - first)):
            lanes[lane] += np.float64(values[lane])
