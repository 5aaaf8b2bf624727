"""One run of all inputs to numbers: inner products, counts of magnitudes, sums of magnitudes.

Sums are taken in float64 in ``LANES`` interleaved parts that are then added in order: fast, and
the same on every processor, whatever the width of its vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nan_merge.kernels.combine import drop, read_vectors
from nan_merge.kernels.compiled import compiled
from nan_merge.kernels.convert import BLOCK, widen
from nan_merge.kernels.philox import draw

LANES = 256
FINE_BITS = 16


@compiled("void(float32[::1], float32[::1], int64, float64[::1])")
def add_products(one: Any, two: Any, count: Any, lanes: Any) -> None:
    """Add the products of two vectors to the lanes, element i to lane i mod LANES."""
    for first in range(0, count, LANES):
        ones, twos = one[first : first + LANES], two[first : first + LANES]
        for lane in range(min(LANES, count - first)):
            lanes[lane] += np.float64(ones[lane]) * np.float64(twos[lane])


@compiled("void(float32[::1], int64, float64[::1])")
def add_values(vector: Any, count: Any, lanes: Any) -> None:
    """Add the elements of a vector to the lanes."""
    for first in range(0, count, LANES):
        values = vector[first : first + LANES]
        for lane in range(min(LANES, count - first)):
            lanes[lane] += np.float64(values[lane])


@compiled("void(float32[:,::1], int64, int64, boolean, float64[:,:,::1])")
def add_gram(scratch: Any, num_models: Any, count: Any, all_pairs: Any, lanes: Any) -> None:
    """Add inner products to lanes (T, T + 1, LANES): of pairs j <= i, and of each with 1."""
    for i in range(num_models):
        for j in range(0 if all_pairs else i, i + 1):
            add_products(scratch[1 + i], scratch[1 + j], count, lanes[i, j])
        add_values(scratch[1 + i], count, lanes[i, num_models])


@compiled(
    "void(uint8[:,::1], int64[::1], int64, int64, boolean, boolean, boolean, float32[:,::1],"
    " float64[:,:,:,::1])"
)
def add_inner_products(
    raw: Any,
    codes: Any,
    has_base: Any,
    count: Any,
    of_weights: Any,
    of_vectors: Any,
    all_pairs: Any,
    scratch: Any,
    lanes: Any,
) -> None:
    """Add inner products of weights to ``lanes[0]`` and of task vectors to ``lanes[1]``."""
    num_models = raw.shape[0] - has_base
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        if of_weights:
            for model in range(num_models):
                row = has_base + model
                widen(raw[row], codes[row], first, size, scratch[1 + model])
            add_gram(scratch, num_models, size, all_pairs, lanes[0])
        if of_vectors:
            read_vectors(raw, codes, has_base, first, size, scratch)
            add_gram(scratch, num_models, size, all_pairs, lanes[1])


@compiled("void(uint8[:,::1], int64[::1], int64, float32[:,::1], int64[:,:,::1])")
def count_coarse(raw: Any, codes: Any, count: Any, scratch: Any, counts: Any) -> None:
    """Count task-vector magnitudes by their leading 15 bits.

    Into two histograms by turns: adding to one cell twice in a row would wait for the memory.
    """
    num_models = raw.shape[0] - 1
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        read_vectors(raw, codes, 1, first, size, scratch)
        for model in range(num_models):
            words = scratch[1 + model].view(np.uint32)
            for place in range(size):
                cell = (words[place] & np.uint32(0x7FFFFFFF)) >> np.uint32(FINE_BITS)
                counts[place & 1, model, cell] += 1


@compiled("void(uint8[:,::1], int64[::1], int64, int64[:,::1], float32[:,::1], int64[:,:,::1])")
def count_fine(raw: Any, codes: Any, count: Any, bins: Any, scratch: Any, counts: Any) -> None:
    """Count by their other 16 bits the magnitudes whose leading bits are a chosen bin's."""
    num_models = raw.shape[0] - 1
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        read_vectors(raw, codes, 1, first, size, scratch)
        for model in range(num_models):
            words = scratch[1 + model].view(np.uint32)
            for chosen in range(bins.shape[1]):
                wanted = np.uint32(bins[model, chosen])
                for place in range(size):
                    word = words[place] & np.uint32(0x7FFFFFFF)
                    if word >> np.uint32(FINE_BITS) == wanted:
                        counts[model, chosen, word & np.uint32(0xFFFF)] += 1


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
        read_vectors(raw, codes, 1, first, size, scratch)
        for model in range(num_models):
            vector = scratch[1 + model]
            for place in range(size):
                vector[place] = abs(vector[place])
            add_values(vector, size, lanes[model, 0])
            draw(keys[model, 0], keys[model, 1], start + first, size, draws)
            drop(vector, size, densities[model], draws)
            add_values(vector, size, lanes[model, 1])
