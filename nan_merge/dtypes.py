"""Types of tensor elements, as safetensors names them; known without importing torch."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from nan_merge.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


class DType(Enum):
    """One type; its name is its code in a safetensors header."""

    F64 = ("float64", 8)
    F32 = ("float32", 4)
    F16 = ("float16", 2)
    BF16 = ("bfloat16", 2)
    I64 = ("int64", 8)
    I32 = ("int32", 4)
    I16 = ("int16", 2)
    I8 = ("int8", 1)
    U8 = ("uint8", 1)
    BOOL = ("bool", 1)

    def __init__(self, label: str, itemsize: int) -> None:
        self.label = label
        self.itemsize = itemsize

    def __str__(self) -> str:
        return self.label

    @property
    def is_floating_point(self) -> bool:
        """Whether its numbers can be averaged."""
        return "float" in self.label

    @property
    def torch(self) -> torch.dtype:
        """The same in torch."""
        return getattr(torch, self.label)


BY_LABEL = {dtype.label: dtype for dtype in DType}


def finite(stored: np.ndarray, dtype: DType) -> np.ndarray:
    """Which elements are neither NaN nor infinite, from their bytes: bool, shape (elements,)."""
    if not dtype.is_floating_point:
        return np.ones(len(stored) // dtype.itemsize, np.bool_)
    if dtype is DType.BF16:  # numpy lacks it; in what is not finite, the exponent's bits are all 1
        return (stored.view(np.uint16) & 0x7F80) != 0x7F80
    return np.isfinite(stored.view(np.dtype(dtype.label)))


def from_float32(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Floats in another type; bfloat16 as uint16, cut short and not rounded."""
    if dtype is DType.BF16:
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.dtype(dtype.label))


def dtype_of(tensor: Tensor) -> DType | None:
    """The type of a tensor's elements, or None if safetensors has none that we merge."""
    return BY_LABEL.get(str(tensor.dtype).removeprefix("torch."))
