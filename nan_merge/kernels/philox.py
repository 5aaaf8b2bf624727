"""Philox4x32-10: draws that depend on the element they are for, many at a time.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, Section 3.3. One step of the
counter gives four draws, and the compiler works on several steps at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nan_merge.kernels.compiled import compiled, part

MULTIPLY = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
ROUNDS = 10
PER_STEP = 4


@part
def draw(key: Any, upper: Any, start: Any, count: Any, out: Any) -> None:
    """Draws for the elements ``start`` to ``start + count``; ``start`` is a multiple of four.

    Element e takes word e mod 4 of step e // 4: its 24 leading bits, times 2**-24. ``key`` is the
    generator's 64 bits of key, ``upper`` the upper half of its counter, of 128 bits. ``out`` has
    room for ``count``, rounded up to a multiple of four.
    """
    first_step = np.uint64(start // PER_STEP)
    words = out.view(np.uint32)
    # Numbers of 32 bits in 64, so that a product is whole.
    for step in range((count + PER_STEP - 1) // PER_STEP):
        number = first_step + np.uint64(step)
        c_0, c_1 = number & LOW, number >> HALF
        c_2, c_3 = upper & LOW, upper >> HALF
        k_0, k_1 = key & LOW, key >> HALF
        for _ in range(ROUNDS):
            product_0, product_1 = MULTIPLY[0] * c_0, MULTIPLY[1] * c_2
            c_0, c_1 = (product_1 >> HALF) ^ c_1 ^ k_0, product_1 & LOW
            c_2, c_3 = (product_0 >> HALF) ^ c_3 ^ k_1, product_0 & LOW
            k_0 = (k_0 + WEYL[0]) & LOW
            k_1 = (k_1 + WEYL[1]) & LOW
        place = PER_STEP * step
        words[place] = np.uint32(c_0)
        words[place + 1] = np.uint32(c_1)
        words[place + 2] = np.uint32(c_2)
        words[place + 3] = np.uint32(c_3)
    for place in range(PER_STEP * ((count + PER_STEP - 1) // PER_STEP)):
        out[place] = np.float32(np.int32(words[place] >> np.uint32(8))) * np.float32(2.0**-24)


@compiled("void(uint64, uint64, int64, int64, float32[::1])")
def fill_draws(key: Any, upper: Any, start: Any, count: Any, out: Any) -> None:
    """`draw`, to be called on its own."""
    draw(key, upper, start, count, out)
