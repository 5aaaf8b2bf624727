"""One run of all inputs to sums of magnitudes, of all and of what dropping would keep."""

from __future__ import annotations

from typing import Any

from nan_merge.kernels.compiled import compiled
from nan_merge.kernels.convert import BLOCK
from nan_merge.kernels.lanes import add_values
from nan_merge.kernels.philox import draw
from nan_merge.kernels.vectors import drop, read_vectors


@compiled(
    "void(uint8[:,::1], int64[::1], int64, int64, float32[::1], uint64[:,::1], float32[:,::1],"
    " float64[:,:,::1])"
)
def add_magnitudes(
    raw: Any,
    codes: Any,
    start: Any,
    count: Any,
    densities: Any,
    keys: Any,
    scratch: Any,
    lanes: Any,
) -> None:
    """Add magnitudes of task vectors to lanes (T, 2, LANES): of all, and of what is kept."""
    num_models = raw.shape[0] - 1
    draws = scratch[1 + num_models]
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        read_vectors(raw, codes, first, size, scratch)
        for model in range(num_models):
            vector = scratch[1 + model]
            for place in range(size):
                vector[place] = abs(vector[place])
            add_values(vector, size, lanes[model, 0])
            draw(keys[model, 0], keys[model, 1], start + first, size, draws)
            drop(vector, size, densities[model], draws)
            add_values(vector, size, lanes[model, 1])
