"""Iso-C and Iso-CTS: give the merged update one singular value in all directions.

arXiv 2502.04959, "No Task Left Behind", Algorithms 1 and 2. Iso-C takes the sum of all task
matrices and replaces every singular value by their mean. Iso-CTS keeps only the first directions of
the sum (the common space), fills the rest with the first directions of each task's matrix outside
of it, makes all of them orthonormal, and gives them their mean singular value. Tensors that are no
matrices are averaged. As the authors' code (github.com/danielm1405/iso-merging).

`coefficients`: factors on each task's matrix; the paper's alpha is the same for all. The mean
singular value grows with them, so NAN's scale counts, and its weighting turns the directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

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

COST = "a singular value decomposition of every matrix"
CTS_COST = (
    "a singular value decomposition of every matrix of every model, and three of the result's size"
)


class IsoCOptions(MatrixOptions):
    """Options of `method: iso_c`."""

    name: Literal["iso_c"] = "iso_c"


class IsoCtsOptions(MatrixOptions):
    """Options of `method: iso_cts`."""

    name: Literal["iso_cts"] = "iso_cts"
    common: float = Field(default=0.8, gt=0, le=1)
    """Share of the directions that are those of the sum; the rest is shared out among the models.
    0.8 in the paper."""


def iso_c(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: IsoCOptions,
    context: Context,
) -> Tensor:
    """Base plus the sum of task matrices with its singular values made equal.

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
    u, s, v = torch.linalg.svd(_sum(vectors), full_matrices=False)
    return ((u @ v) * s.mean()).float().add_(base)


def iso_cts(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: IsoCtsOptions,
    context: Context,
) -> Tensor:
    """Base plus common and task-specific directions, all of one singular value.

    Args:
        base: Shape S, float32.
        finetuned: T tensors of shape S, float32.
        coefficients: T numbers.
        options: Share of common directions, and names to average.
        context: The tensor's name.

    Returns:
        Shape S, float32.
    """
    assert base is not None
    vectors = weighted_vectors(base, finetuned, coefficients)
    if not is_matrix(base, options, context):
        return mean_update(base, vectors)
    own, num_common = directions(min(base.shape), len(vectors), options.common)
    u, s, v = torch.linalg.svd(_sum(vectors), full_matrices=False)
    common = u[:, :num_common]
    left, values, right = [], [], []
    for vector in vectors if own else ():
        outside = vector.double()
        outside -= common @ (common.T @ outside)
        own_u, own_s, own_v = torch.linalg.svd(outside, full_matrices=False)
        left.append(own_u[:, :own])
        values.append(own_s[:own])
        right.append(own_v[:own])
    u = orthogonal_factor(torch.cat([*left, common], dim=1))
    v = orthogonal_factor(torch.cat([*right, v[:num_common]]))
    size = torch.cat([*values, s[:num_common]]).mean()
    return ((u @ v) * size).float().add_(base)


def directions(rank: int, num_models: int, common: float) -> tuple[int, int]:
    """Directions of each model, and of the common space; together they are ``rank``."""
    own = round((rank - int(rank * common)) / num_models)
    return own, rank - own * num_models


def _sum(vectors: Sequence[Tensor]) -> Tensor:
    total = vectors[0].double()
    for vector in vectors[1:]:
        total.add_(vector)
    return total
