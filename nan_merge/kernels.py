"""The two loops that torch has no fast operator for, compiled by numba where it is installed.

Both count integers, so numba and the plain numpy versions give the same result; numba only makes
them two to three times faster (docs/performance.md). `pip install 'nan-merge[fast]'` brings it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

FINE_BITS = 16

CountCoarse = Callable[[np.ndarray, np.ndarray], None]
CountFine = Callable[[np.ndarray, int, np.ndarray], None]


def count_coarse_numpy(bits: np.ndarray, counts: np.ndarray) -> None:
    """Add to int64 (2**15,) how often each value of the leading 15 bits occurs in int32 (n,)."""
    counts += np.bincount(bits >> FINE_BITS, minlength=len(counts))


def count_fine_numpy(bits: np.ndarray, chosen: int, counts: np.ndarray) -> None:
    """Add to int64 (2**16,) the other 16 bits of those whose leading bits are ``chosen``."""
    inside = bits[bits >> FINE_BITS == chosen] & ((1 << FINE_BITS) - 1)
    counts += np.bincount(inside, minlength=len(counts))


@cache
def counting_kernels() -> tuple[CountCoarse, CountFine]:
    """The fastest versions that can be had here."""
    try:
        from numba import njit
    except ImportError:
        return count_coarse_numpy, count_fine_numpy

    def count_coarse(bits: Any, counts: Any) -> None:
        for place in range(bits.shape[0]):
            counts[bits[place] >> 16] += 1

    def count_fine(bits: Any, chosen: Any, counts: Any) -> None:
        for place in range(bits.shape[0]):
            value = bits[place]
            if value >> 16 == chosen:
                counts[value & 65535] += 1

    compile_for: Any = njit
    coarse = compile_for("void(int32[::1], int64[::1])", nogil=True, cache=True)(count_coarse)
    fine = compile_for("void(int32[::1], int64, int64[::1])", nogil=True, cache=True)(count_fine)
    return coarse, fine
