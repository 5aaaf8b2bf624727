"""A tensor with a LoRA adapter on it, W + s·B·A, computed block by block as it is read.

LoRA is arXiv 2106.09685; the scale s is alpha/r, or alpha/√r in rank-stabilised LoRA
(arXiv 2312.03732). Nothing is written anywhere, and B·A is never formed whole.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nan_merge.dtypes import DType
from nan_merge.lazy_torch import torch
from nan_merge.methods.method import TensorNorms
from nan_merge.safetensors_file import BlockReader, TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

# Elements of B·A that are computed at once. The products are always of the same whole rows,
# whatever part of them was asked for, because the shape of a product can change its last bits.
PRODUCT_ELEMENTS = 1 << 17


@dataclass(frozen=True)
class LoraTensor(TensorInfo):
    """W + s·B·A in float32 (float64 if W is), so that what B·A adds is not rounded away.

    Attributes:
        name: Tensor's name.
        path: The adapter's file, which messages name.
        dtype: Type of the elements as they are read.
        shape: Shape of W.
        offset: Nothing; there is no place where these elements lie.
        base: W.
        a: A of r rows: (r, inputs), or (r, inputs, *kernel) of a convolution.
        b: B of r columns: (outputs, r), or (outputs, r, 1, ...) of a convolution.
        scale: s.
        fan_in_fan_out: Whether W lies transposed, as (inputs, outputs): GPT-2's Conv1D modules
            and every embedding.
    """

    base: TensorInfo
    a: TensorInfo
    b: TensorInfo
    scale: float
    fan_in_fan_out: bool

    @property
    def rank(self) -> int:
        """Rank r of B·A."""
        return self.a.shape[0]

    @property
    def stored_dtype(self) -> DType:
        """Type that the base keeps it in, and so its type in a result that names none."""
        return self.base.stored_dtype

    def read_from(self, reader: BlockReader, start: int, count: int) -> Tensor:
        """Elements of W + s·B·A; equal bytes however a range is divided into reads."""
        weights = reader.read(self.base, start, count).to(self.dtype.torch)
        num_rows = self._rows_of_a_product()
        size = num_rows * math.prod(self.shape[1:])
        end = start + count
        pieces = [
            self._product(reader, place, num_rows)[
                max(0, start - place * size) : min(size, end - place * size)
            ]
            for place in range(start // size, -(-end // size))
        ]
        return weights + (pieces[0] if len(pieces) == 1 else torch.cat(pieces))

    def _rows_of_a_product(self) -> int:
        return max(1, PRODUCT_ELEMENTS // math.prod(self.shape[1:]))

    def _product(self, reader: BlockReader, place: int, num_rows: int) -> Tensor:
        """One piece of s·B·A, flattened: ``num_rows`` whole rows, fewer in the last piece."""

        def make() -> Tensor:
            first = place * num_rows
            left = self._left_rows(reader, first, min(self.shape[0], first + num_rows))
            right = reader.remember((self, "right"), lambda: self._right(reader))
            return ((left * self.scale) @ right).flatten()

        return reader.remember((self, place), make)

    def _left_rows(self, reader: BlockReader, first: int, last: int) -> Tensor:
        """The left factor's rows, shape (last - first, r): of B, or of Aᵀ if W is transposed."""
        if not self.fan_in_fan_out:
            rows = reader.read(self.b, first * self.rank, (last - first) * self.rank)
            return rows.to(self.dtype.torch).view(last - first, self.rank)
        columns = [
            reader.read(self.a, row * self.shape[0] + first, last - first)
            for row in range(self.rank)
        ]
        return torch.stack(columns, dim=1).to(self.dtype.torch)

    def _right(self, reader: BlockReader) -> Tensor:
        """The right factor, shape (r, elements of a row of W): A, or Bᵀ if W is transposed."""
        # A copy in memory that torch aligns: kernels may sum otherwise where alignment is poor.
        factor = reader.read(self.b if self.fan_in_fan_out else self.a).to(
            self.dtype.torch, copy=True
        )
        if self.fan_in_fan_out:
            return factor.view(-1, self.rank).T.contiguous()
        return factor.view(self.rank, -1)


def lora_inner_products(
    reader: BlockReader, base: TensorInfo, finetuned: Sequence[TensorInfo]
) -> TensorNorms | None:
    """Inner products and sums of LoRA task vectors on one base tensor, without forming any B·A.

    ⟨s₁B₁A₁, s₂B₂A₂⟩ = s₁s₂ tr(A₁ᵀB₁ᵀB₂A₂) = s₁s₂ Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ), and so the squared norm
    of one is s² tr((BᵀB)(AAᵀ)); the sum of its elements is s (1ᵀB)(A1). The task vector is s·B·A
    itself here, in float64; the difference of W + s·B·A and W that a merge forms in float32 is
    that up to its rounding.

    Args:
        reader: Reads the factors.
        base: The tensor in the base model.
        finetuned: The same tensor in each of T models.

    Returns:
        Task vectors' products, all pairs, and sums; or None if no model's tensor is a LoRA, or one
        is neither that nor the base's own, so that elements must be read.
    """
    if not any(isinstance(tensor, LoraTensor) for tensor in finetuned):
        return None
    if not all(_is_same(tensor, base) or _is_lora_of(tensor, base) for tensor in finetuned):
        return None
    factors = [
        _factors(reader, tensor) if isinstance(tensor, LoraTensor) else None for tensor in finetuned
    ]
    products = tuple(tuple(_inner_product(one, two) for two in factors) for one in factors)
    sums = tuple(float(one[0].sum(0) @ one[1].sum(1)) if one else 0.0 for one in factors)
    return TensorNorms((), products, (), sums)


def _is_lora_of(tensor: TensorInfo, base: TensorInfo) -> bool:
    return isinstance(tensor, LoraTensor) and _is_same(tensor.base, base)


def _is_same(tensor: TensorInfo, other: TensorInfo) -> bool:
    """Whether both lie at the same place of the same file, however its path is written."""
    if tensor == other:
        return True
    places = [(os.path.realpath(item.path), item.offset, item.shape) for item in (tensor, other)]
    return type(tensor) is type(other) is TensorInfo and places[0] == places[1]


def _factors(reader: BlockReader, tensor: LoraTensor) -> tuple[Tensor, Tensor]:
    """s·left (rows of W, r) and right (r, elements of a row) in float64."""
    a = reader.read(tensor.a).double().view(tensor.rank, -1)
    b = reader.read(tensor.b).double().view(-1, tensor.rank)
    return (a.T * tensor.scale, b.T) if tensor.fan_in_fan_out else (b * tensor.scale, a)


def _inner_product(one: tuple[Tensor, Tensor] | None, two: tuple[Tensor, Tensor] | None) -> float:
    if one is None or two is None:
        return 0.0  # an adapter that leaves this tensor alone
    (left, right), (other_left, other_right) = one, two
    return float(((left.T @ other_left) * (right @ other_right.T)).sum())
