"""From stored elements to float32, and back with one rounding."""

from __future__ import annotations

from typing import Any

import numpy as np

from nan_merge.dtypes import DType
from nan_merge.kernels.compiled import part

# Elements that a kernel has in float32 at a time: what it makes of them stays in the cache.
BLOCK = 4096
FLOAT32, BFLOAT16 = 0, 1
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
    words = values.view(np.uint32)
    num_infinite = 0
    for place in range(count):
        num_infinite += (words[place] & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    if code == BFLOAT16:
        halves = stored.view(np.uint16)[first : first + count]
        for place in range(count):
            word = words[place]
            odd = (word >> np.uint32(16)) & np.uint32(1)
            half = np.uint16((word + np.uint32(0x7FFF) + odd) >> np.uint32(16))
            num_infinite += (half & np.uint16(0x7F80)) == np.uint16(0x7F80)
            halves[place] = half
    else:
        floats = stored.view(np.float32)[first : first + count]
        for place in range(count):
            floats[place] = values[place]
    return num_infinite == 0
