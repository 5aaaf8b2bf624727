"""Memory that begins where a page begins, for what is read from files and written to them.

The system copies between a file's pages and ours. Some processors (AMD's, with "fast short rep
mov") copy at a third of their speed when the destination lies a few bytes further into its page
than the source does into its own, as memory that numpy or malloc give out always lies: 16 bytes.
`benchmarks/copy_speed.py` shows it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

PAGE = 4096  # bytes


def aligned_empty(shape: tuple[int, ...], dtype: type[Any]) -> np.ndarray:
    """Like `numpy.empty`, at a multiple of `PAGE`."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(num_bytes + PAGE, np.uint8)
    start = -memory.ctypes.data % PAGE
    return memory[start : start + num_bytes].view(dtype).reshape(shape)
