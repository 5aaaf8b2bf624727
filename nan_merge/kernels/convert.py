"""From stored elements to float32, and back with one rounding."""

from __future__ import annotations

from typing import Any

import numpy as np

from nan_merge.dtypes import DType
from nan_merge.kernels.compiled import part

# Elements that a kernel has in float32 at a time: what it makes of them, a handful of rows of
# 4 KiB, stays in the nearest cache.
BLOCK = 1024
FLOAT32, BFLOAT16 = 0, 1
EXPONENT = np.uint32(0x7F800000)  # all ones in infinity and NaN
CODES = {DType.F32: FLOAT32, DType.BF16: BFLOAT16}


@part
def widen(stored: Any, code: Any, first: Any, count: Any, out: Any) -> None:
    """Elements ``first`` to ``first + count`` of stored bytes as float32."""
    if code == BFLOAT16:
        halves = stored.view(np.uint16)[first : first + count]
        words = out.view(np.uint32)
        for place in range(count):
            words[place] = np.uint32(halves[place]) << np.uint32(16)
    else:
        floats = stored.view(np.float32)[first : first + count]
        for place in range(count):
            out[place] = floats[place]


@part
def narrow(values: Any, count: Any, code: Any, first: Any, stored: Any) -> bool:
    """Store float32 values, rounded to nearest, ties to even; whether all are finite, then too."""
    # The largest exponent is looked for in 32 bits: a count of the infinite would need 64, and
    # halve how many elements the processor works on at once.
    words = values.view(np.uint32)
    largest = np.uint32(0)
    if code == BFLOAT16:
        halves = stored.view(np.uint16)[first : first + count]
        for place in range(count):
            word = words[place]
            odd = (word >> np.uint32(16)) & np.uint32(1)
            rounded = np.uint32(word + np.uint32(0x7FFF) + odd)
            largest = max(largest, max(word & EXPONENT, rounded & EXPONENT))
            halves[place] = np.uint16(rounded >> np.uint32(16))
    else:
        floats = stored.view(np.float32)[first : first + count]
        for place in range(count):
            largest = max(largest, words[place] & EXPONENT)
            floats[place] = values[place]
    return largest != EXPONENT
