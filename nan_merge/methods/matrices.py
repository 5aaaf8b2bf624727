"""What methods share that look at task vectors as matrices and average all other tensors."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from nan_merge.lazy_torch import torch
from nan_merge.methods.method import Context, task_vectors
from nan_merge.schema import StrictModel

if TYPE_CHECKING:
    from torch import Tensor

# In float32: a singular value decomposition of a square matrix in float64, twice, and its parts.
SVD_COPIES = 40


class MatrixOptions(StrictModel):
    """Options of methods for matrices."""

    exclude: tuple[str, ...] | None = None
    """Glob patterns of tensor names that are averaged though they are matrices: large embeddings,
    say, whose decomposition takes long."""


def weighted_vectors(
    base: Tensor, finetuned: Sequence[Tensor], coefficients: Sequence[float]
) -> list[Tensor]:
    """Task vectors times their coefficients, float32, in place of the fine-tuned tensors."""
    vectors = task_vectors(base, finetuned)
    return [vector.mul_(share) for vector, share in zip(vectors, coefficients, strict=True)]


def is_matrix(tensor: Tensor, options: MatrixOptions, context: Context) -> bool:
    """Whether a tensor is taken as a matrix, and not averaged."""
    excluded = any(fnmatchcase(context.tensor, pattern) for pattern in options.exclude or ())
    return tensor.dim() == 2 and tensor.numel() > 0 and not excluded


def mean_update(base: Tensor, vectors: Sequence[Tensor]) -> Tensor:
    """Base plus the mean of task vectors, as the methods' codes do with what is no matrix."""
    total = vectors[0]
    for vector in vectors[1:]:
        total.add_(vector)
    return total.div_(len(vectors)).add_(base)


def orthogonal_factor(matrix: Tensor) -> Tensor:
    """The nearest matrix with orthonormal columns (or rows): U V^T of U S V^T."""
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right
