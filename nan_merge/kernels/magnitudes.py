"""One run of all inputs to counts of its task-vector magnitudes."""

from __future__ import annotations

from typing import Any

import numpy as np

from nan_merge.kernels.compiled import compiled
from nan_merge.kernels.convert import BLOCK
from nan_merge.kernels.vectors import read_vectors

COARSE_BITS, FINE_BITS = 15, 16  # together the 31 bits of a float32 magnitude


@compiled("void(uint8[:,::1], int64[::1], int64, float32[:,::1], int64[:,:,::1])")
def count_coarse(raw: Any, codes: Any, count: Any, scratch: Any, counts: Any) -> None:
    """Count task-vector magnitudes by their leading 15 bits.

    Into two histograms by turns: adding to one cell twice in a row would wait for the memory.
    """
    num_models = raw.shape[0] - 1
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        read_vectors(raw, codes, first, size, scratch)
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
        read_vectors(raw, codes, first, size, scratch)
        for model in range(num_models):
            words = scratch[1 + model].view(np.uint32)
            for chosen in range(bins.shape[1]):
                wanted = np.uint32(bins[model, chosen])
                for place in range(size):
                    word = words[place] & np.uint32(0x7FFFFFFF)
                    if word >> np.uint32(FINE_BITS) == wanted:
                        counts[model, chosen, word & np.uint32(0xFFFF)] += 1
