"""TSV-Merge: keep each task's first singular vectors, and take apart what they share.

arXiv 2412.00081, Section 4.2 and Algorithm 1: of each of T task matrices the first `rank / T`
singular triplets are kept; left and right vectors of all tasks are put side by side and replaced by
the nearest orthonormal ones (the polar factor, a Procrustes problem); what is added to the base is
`U S V^T` of these. Tensors that are no matrices are averaged. As the authors' code
(github.com/AntoAndGar/task_singular_vectors), but at least one triplet of each task is kept, and
one whose singular value is 0 is not: its vectors are arbitrary and would turn the others.

`coefficients`: factors on each task's matrix, and so on its singular values; 1 in the paper. NAN's
weighting and its scale both count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from nan_merge.lazy_torch import torch
from nan_merge.methods.matrices import (
    MatrixOptions,
    is_matrix,
    mean_update,
    orthogonal_factor,
    weighted_vectors,
)
from nan_merge.methods.method import Context

if TYPE_CHECKING:
    from torch import Tensor

COST = "a singular value decomposition of every matrix of every model, and two of the result's size"


class TsvOptions(MatrixOptions):
    """Options of `method: tsv`."""

    name: Literal["tsv"] = "tsv"


def tsv(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: TsvOptions,
    context: Context,
) -> Tensor:
    """Base plus the orthogonalised leading singular vectors of all tasks.

    Args:
        base: Shape S, float32.
        finetuned: T tensors of shape S, float32.
        coefficients: T numbers.
        options: Names to average.
        context: The tensor's name.

    Returns:
        Shape S, float32.
    """
    assert base is not None
    vectors = weighted_vectors(base, finetuned, coefficients)
    if not is_matrix(base, options, context):
        return mean_update(base, vectors)
    kept = max(1, min(base.shape) // len(vectors))
    left, values, right = [], [], []
    for vector in vectors:
        u, s, v = torch.linalg.svd(vector.double(), full_matrices=False)
        rank = min(kept, int((s > 0).sum()))
        left.append(u[:, :rank])
        values.append(s[:rank])
        right.append(v[:rank])
    sizes = torch.cat(values)
    if not len(sizes):  # no model changed this tensor
        return base
    u, v = orthogonal_factor(torch.cat(left, dim=1)), orthogonal_factor(torch.cat(right))
    return ((u * sizes) @ v).float().add_(base)
