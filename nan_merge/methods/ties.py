"""TIES: trim, elect signs, merge what agrees (arXiv 2306.01708, Algorithm 1).

As in the authors' code (prateeky2806/ties-merging, src/ties_minimal.ipynb), the threshold is one
number per model over its whole task vector, elements tied with it are kept, and an element whose
vote is tied takes the sign of the majority of all elected elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from nan_merge.methods.method import ModelStatistics
from nan_merge.schema import StrictModel


class TiesOptions(StrictModel):
    """Options of `method: ties`."""

    name: Literal["ties"] = "ties"
    density: float = Field(default=0.2, gt=0, le=1)
    """Share of each task vector's elements that is kept, the largest by magnitude."""
    disjoint: Literal["mean", "sum"] = "mean"
    """How agreeing elements are joined: `mean` as in the TIES paper, or `sum` as in the code behind
    AdaMerging's and FusionBench's TIES rows, which the tables of arXiv 2505.16148 quote."""
    order: Literal["before", "after"] = "before"
    """Whether coefficients weigh the vote on signs, or are applied after it."""


def ties(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: TiesOptions,
    statistics: ModelStatistics,
) -> Tensor:
    """Base + the agreeing, trimmed and weighted task vectors, summed or averaged by their number.

    The mean divides by the number of agreeing elements, not by the sum of their coefficients, so
    that the coefficients' scale is kept; with equal coefficients it is the paper's lambda.

    Args:
        base: Shape S, float32.
        finetuned: T pieces of shape S, float32.
        coefficients: T numbers.
        options: Density, kind of join and order.
        statistics: T magnitude thresholds and the sign that wins ties.

    Returns:
        Shape S, float32.
    """
    assert base is not None
    trimmed = trim(base, finetuned, statistics.magnitude_thresholds)
    votes = vote(trimmed, coefficients, options)
    elected = torch.where(votes == 0, statistics.majority_sign, votes.sign())
    update = torch.zeros_like(base)
    num_agreeing = torch.zeros_like(base)
    for vector, coefficient in zip(trimmed, coefficients, strict=True):
        # With `before` the weighted vector is what agrees or not: a negative weight flips it.
        weighted = vector * coefficient
        agrees = (weighted if options.order == "before" else vector).sign() == elected
        update += weighted * agrees
        num_agreeing += agrees
    if options.disjoint == "mean":
        update /= num_agreeing.clamp_min_(1.0)
    return update + base


def trim(base: Tensor, finetuned: Sequence[Tensor], thresholds: Sequence[float]) -> list[Tensor]:
    """Task vectors, each of shape S, with every element below its model's threshold set to zero."""
    vectors = [tensor - base for tensor in finetuned]
    for vector, threshold in zip(vectors, thresholds, strict=True):
        vector[vector.abs() < threshold] = 0.0
    return vectors


def vote(trimmed: Sequence[Tensor], coefficients: Sequence[float], options: TiesOptions) -> Tensor:
    """Sum of the trimmed task vectors, weighted if `order` is `before`; its sign is elected."""
    weights = coefficients if options.order == "before" else [1.0] * len(trimmed)
    votes = trimmed[0] * weights[0]
    for vector, weight in zip(trimmed[1:], weights[1:], strict=True):
        votes.add_(vector, alpha=weight)
    return votes


def count_elected_signs(
    base: Tensor,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: TiesOptions,
    statistics: ModelStatistics,
) -> int:
    """Elected plus signs minus elected minus signs in this piece; the model's sum breaks ties."""
    votes = vote(trim(base, finetuned, statistics.magnitude_thresholds), coefficients, options)
    return int(votes.sign().sum(dtype=torch.int64))
