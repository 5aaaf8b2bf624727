"""TIES: trim, elect signs, merge what agrees (arXiv 2306.01708, Algorithm 1).

What is trimmed depends on the dialect: an element is kept if its magnitude is not below its
model's threshold, which is the magnitude of rank `kept_rank`, over the whole task vector in
`paper` and `fusionbench`, over one tensor in `mergekit` and `peft`. Elements tied with the
threshold are all kept, as in the authors' code (prateeky2806/ties-merging,
src/ties_minimal.ipynb); mergekit and PEFT keep exactly k of them, whichever their sort puts first.
How signs are elected and elements joined: `nan_merge.methods.consensus`. mergekit's `int8_mask`
changes nothing and has no counterpart.

`coefficients`: any, NAN's included. They weigh votes and elements; with `disjoint: weighted_mean`
(the default of `mergekit`) only their ratios count, so they are divided by their sum: NAN's
allocation acts, its scale does not, and `lambda` here takes the place of `coefficients.lambda`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nan_merge.lazy_torch import torch
from nan_merge.methods.consensus import ConsensusOptions, join, joining_program, row_of, rule_of
from nan_merge.methods.method import Context, Dialect, PerModelShare, Program, task_vectors

if TYPE_CHECKING:
    from torch import Tensor


class TiesOptions(ConsensusOptions):
    """Options of `method: ties`."""

    name: Literal["ties"] = "ties"
    density: PerModelShare = 0.2
    """Share of each task vector's elements that is kept, the largest by magnitude: a number, one
    per model, or, where shares are of each tensor (dialects `mergekit` and `peft`), gradients and
    rules by which it differs between tensors (`nan_merge.tensor_options`)."""
    dialect: Dialect = "paper"
    """Whose TIES: the paper's, or that of mergekit, PEFT or FusionBench. It decides over what the
    share is taken, where a tied vote goes, and the defaults of `disjoint` and `order`."""


def ties(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: TiesOptions,
    context: Context,
) -> Tensor:
    """Base + the agreeing, trimmed and weighted task vectors, summed or averaged.

    The paper's mean divides by the number of agreeing elements, not by the sum of their
    coefficients, so that the coefficients' scale is kept; with equal coefficients it is the
    paper's lambda.

    Args:
        base: Shape S, float32.
        finetuned: T pieces of shape S, float32.
        coefficients: T numbers.
        options: Density, dialect, kind of join and order.
        context: T magnitude thresholds and the sign that wins ties.

    Returns:
        Shape S, float32.
    """
    assert base is not None
    trimmed = trim(base, finetuned, context.thresholds)
    rule = rule_of(options, options.dialect)
    return join(trimmed, coefficients, options, rule, context.majority_sign).add_(base)


def trim(base: Tensor, finetuned: Sequence[Tensor], thresholds: Sequence[float]) -> list[Tensor]:
    """Task vectors, each of shape S, with every element below its model's threshold set to zero.

    Args:
        base: Shape S, float32.
        finetuned: T pieces of shape S, float32; overwritten.
        thresholds: T magnitudes, each a float32 number; infinity keeps nothing.
    """
    vectors = task_vectors(base, finetuned)
    shrink = torch.nn.functional.hardshrink
    return [
        # `hardshrink` keeps what is above a number, and we what is not below: one step lower.
        shrink(vector, float(np.nextafter(np.float32(threshold), np.float32(0))))
        if threshold > 0
        else vector
        for vector, threshold in zip(vectors, thresholds, strict=True)
    ]


def kept_rank(dialect: Dialect, density: float, num_elements: int) -> int:
    """Rank (from 1, ascending) of the smallest magnitude that is kept.

    `paper` and `fusionbench` take the (d - floor(d * density))-th of d magnitudes and so keep
    floor(d * density) + 1; `mergekit` keeps floor(d * density) but at least one, `peft`
    floor(d * density), which can be none.

    Args:
        dialect: Whose rule.
        density: Share that is kept, in (0, 1].
        num_elements: Of the whole model or of one tensor, as the dialect asks.

    Returns:
        0 if all are kept (threshold 0), ``num_elements + 1`` if none is (threshold infinity).
    """
    kept = int(density * num_elements)
    if density >= 1 or num_elements == 0:
        return 0
    if dialect in ("paper", "fusionbench"):
        return num_elements - kept
    return num_elements - max(kept, 1 if dialect == "mergekit" else 0) + 1


def ties_row(options: TiesOptions) -> dict[str, Any]:
    """What the dialect changes of the method's row."""
    changes = row_of(rule_of(options, options.dialect))
    if options.dialect in ("mergekit", "peft"):
        changes["needs"] = ("tensor_threshold",)
    return changes


def ties_program(options: TiesOptions, context: Context) -> Program:
    """`ties` for the compiled kernel."""
    rule = rule_of(options, options.dialect)
    return joining_program(options, rule, context.majority_sign, thresholds=context.thresholds)
