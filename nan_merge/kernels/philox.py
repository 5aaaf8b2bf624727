"""Philox4x64-10, compiled: the same draws as `nan_merge.random.uniform`, eight at a time.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, Section 3.3; numpy's
generator of that name gives the same numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nan_merge.kernels.compiled import part

MULTIPLY = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
WEYL = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B))
ROUNDS = 10
PER_COUNT = 8  # float32 draws from one step of the counter


def _high_half(context: Any, one: Any, two: Any) -> Any:
    """The upper 64 of the 128 bits of a product; one instruction where numba has no name for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(argument, wide) for argument in arguments))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


high_half: Any = intrinsic(_high_half)


@part
def draw(key_0: Any, key_1: Any, start: Any, count: Any, out: Any) -> None:
    """Draws for the elements ``start`` to ``start + count``; ``start`` is a multiple of eight.

    ``out`` has room for ``count``, rounded up to a multiple of eight.
    """
    num_steps = (count + PER_COUNT - 1) // PER_COUNT
    words = out.view(np.uint64)
    for step in range(num_steps):
        # numpy adds one to the counter before it computes.
        c_0 = np.uint64(start // PER_COUNT + step + 1)
        c_1 = c_2 = c_3 = np.uint64(0)
        k_0, k_1 = key_0, key_1
        for _ in range(ROUNDS):
            high_0, low_0 = high_half(MULTIPLY[0], c_0), MULTIPLY[0] * c_0
            high_1, low_1 = high_half(MULTIPLY[1], c_2), MULTIPLY[1] * c_2
            c_0, c_1, c_2, c_3 = high_1 ^ c_1 ^ k_0, low_1, high_0 ^ c_3 ^ k_1, low_0
            k_0 += WEYL[0]
            k_1 += WEYL[1]
        quarter = words[4 * step : 4 * step + 4]
        quarter[0], quarter[1], quarter[2], quarter[3] = c_0, c_1, c_2, c_3
    # Each word holds two draws, the lower half first, as it lies in a little-endian memory.
    halves = out.view(np.uint32)
    for place in range(PER_COUNT * num_steps):
        out[place] = np.float32(np.int32(halves[place] >> np.uint32(8))) * np.float32(2.0**-24)
