"""SCE: select by variance, calculate weights, erase the minority (arXiv 2408.07990, Section 3.3).

Per tensor: of the elements whose task vectors vary between the models, the `density` with the
largest variance are selected; each model weighs as much as the mean square of its selected
elements; elements whose sign disagrees with that of the sum are erased; the rest is averaged by
weight. As in mergekit (merge_methods/sce.py), where `density` is `select_topk` and 1 by default,
a tied vote goes to plus, and weights are divided by the sum over the models that agree. Elements
tied with the smallest selected variance are all selected; mergekit's sort picks among them.

`mergekit` weighs all models alike where the mean squares sum to less than 1e-6, which many
fine-tunes of language models do everywhere, and divides by at least 1e-6; `paper` does neither.

`coefficients`: factors on SCE's own weights, divided by their sum; equal ones change nothing. So
NAN's alpha multiplies weights that grow with the square of the norm: with `target: task_vector`
and `power: 2` it would undo them, with the paper's power of 1 the weights grow with the norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from nan_merge.lazy_torch import torch
from nan_merge.methods.consensus import elected_signs, without_zeros
from nan_merge.methods.method import Context, Share, refuse_negative, task_vectors
from nan_merge.methods.ranks import kth_smallest
from nan_merge.schema import StrictModel

if TYPE_CHECKING:
    from torch import Tensor

MERGEKIT_FLOOR = 1e-6


class SceOptions(StrictModel):
    """Options of `method: sce`."""

    name: Literal["sce"] = "sce"
    density: Share = 1.0
    """Share of the elements that vary between models which is selected, by variance."""
    dialect: Literal["paper", "mergekit"] = "paper"
    """`mergekit` weighs models alike where their task vectors are very small."""


def sce(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: SceOptions,
    context: Context,
) -> Tensor:
    """Base + the weighted mean of the selected elements that agree in sign.

    Args:
        base: Shape S, float32; a whole tensor if the density is below 1.
        finetuned: T pieces of shape S, float32.
        coefficients: T numbers that sum to 1, none negative.
        options: Density and dialect.
        context: Inner products of the task vectors over the whole tensor, if the density is 1.

    Returns:
        Shape S, float32.

    Raises:
        CoefficientError: If a coefficient is negative.
    """
    assert base is not None
    refuse_negative(coefficients, "SCE")
    vectors = task_vectors(base, finetuned)
    if options.density < 1:
        select_by_variance(vectors, options.density)
        squares = [float(vector.double().square().sum()) for vector in vectors]
    else:
        assert context.norms is not None
        squares = [row[place] for place, row in enumerate(context.norms.task_vectors)]
    weights = model_weights(squares, coefficients, options, math.prod(context.shape))
    floor = MERGEKIT_FLOOR if options.dialect == "mergekit" else 0.0
    return erase_and_average(vectors, weights, floor).add_(base)


def erase_and_average(vectors: Sequence[Tensor], weights: Sequence[float], floor: float) -> Tensor:
    """The weighted mean of what agrees with the sign of the sum, in place of the vectors.

    Args:
        vectors: T task vectors of shape S, float32.
        weights: T numbers, not negative.
        floor: The smallest sum of weights that is divided by.

    Returns:
        Shape S, float32.
    """
    votes = torch.zeros_like(vectors[0])
    for vector in vectors:
        votes += vector
    elected = elected_signs(votes, tie=1.0)
    update, divisor = torch.zeros_like(votes), torch.zeros_like(votes)
    for vector, weight in zip(vectors, weights, strict=True):
        agreeing = vector.mul_(elected).clamp_min_(0.0)
        update += agreeing * weight
        divisor += agreeing.sign_().mul_(weight)
    update.mul_(elected)
    return update.div_(without_zeros(divisor.clamp_min_(floor)))


def select_by_variance(vectors: Sequence[Tensor], density: float) -> None:
    """Set to zero all but the share of varying elements with the largest variance over models.

    Args:
        vectors: T task vectors of one whole tensor, any shape S; changed.
        density: Share of the elements with a variance above 0 that stays.
    """
    if vectors[0].numel() == 0:
        return
    variance = torch.stack(list(vectors)).var(dim=0, unbiased=False).view(-1)
    kept = int(int(variance.count_nonzero()) * density)
    if kept == 0:
        for vector in vectors:
            vector.zero_()
        return
    (threshold,) = kth_smallest(variance.view(1, -1), [variance.numel() - kept + 1])
    selected = (variance >= threshold).to(variance.dtype).view(vectors[0].shape)
    for vector in vectors:
        vector.mul_(selected)


def model_weights(
    squares: Sequence[float], coefficients: Sequence[float], options: SceOptions, num_elements: int
) -> list[float]:
    """T weights that sum to 1 if the coefficients are equal: squares over their sum.

    Args:
        squares: Sum of squares of each model's selected elements.
        coefficients: T factors; multiplied by T, so that equal ones are 1.
        options: The dialect.
        num_elements: Of the whole tensor; mergekit compares mean squares.
    """
    total = math.fsum(squares)
    floor = MERGEKIT_FLOOR * num_elements if options.dialect == "mergekit" else 0.0
    alike = total < floor or total == 0
    shares = [1 / len(squares) if alike else square / total for square in squares]
    return [share * c * len(squares) for share, c in zip(shares, coefficients, strict=True)]


def sce_row(options: SceOptions) -> dict[str, Any]:
    """A selection needs the whole tensor, and then sums over it itself."""
    return {"unit": "matrix", "needs": ()} if options.density < 1 else {}
