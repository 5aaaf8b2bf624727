"""DARE: drop elements of the task vectors at random and rescale the rest (arXiv 2311.03099).

Section 3.2: with drop rate p = 1 - density, m ~ Bernoulli(1 - p) and the vector becomes
m * vector / (1 - p), whose mean is the vector. Dropped before merging, as in the authors' code
(yule-BUAA/MergeLM, model_merging_methods/mask_weights_utils.py); `peft` and `fusionbench` do the
same. `mergekit` (sparsify.py) rescales instead so that the tensor's sum of magnitudes is kept;
that sum needs the whole tensor, so this dialect takes tensors whole.

`dare_ties` elects signs over what was not dropped and does not trim by magnitude besides, like
mergekit and PEFT; a tied vote goes to plus. MergeLM and FusionBench trim the dropped vectors once
more, over the whole model: that is not offered.

`coefficients`: any, NAN's included, whose norms are those before dropping. In expectation they act
as in Task Arithmetic. For `disjoint: weighted_mean` see `nan_merge.methods.ties`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from nan_merge.methods.consensus import ConsensusOptions, join, row_of, rule_of
from nan_merge.methods.method import (
    Context,
    Dialect,
    PerModelShare,
    per_model,
    task_vectors,
    weighted_sum,
)
from nan_merge.random import uniform
from nan_merge.schema import StrictModel

SMALLEST_SUM = 1e-7  # mergekit does not rescale a tensor whose magnitudes sum to less


class DareLinearOptions(StrictModel):
    """Options of `method: dare_linear`."""

    name: Literal["dare_linear"] = "dare_linear"
    density: PerModelShare = 0.5
    """Chance of each element to be kept: a number, one per model, or gradients and rules by which
    it differs between tensors (`nan_merge.tensor_options`)."""
    dialect: Dialect = "paper"
    """`mergekit` keeps each tensor's sum of magnitudes; the others divide by the density."""
    rescale: bool = True
    """Whether kept elements are made larger to make up for the dropped ones."""


class DareTiesOptions(ConsensusOptions):
    """Options of `method: dare_ties`."""

    name: Literal["dare_ties"] = "dare_ties"
    density: PerModelShare = 0.5
    """Chance of each element to be kept: a number, one per model, or gradients and rules by which
    it differs between tensors (`nan_merge.tensor_options`)."""
    dialect: Literal["paper", "mergekit", "peft"] = "paper"
    """Whose rescaling, as for `dare_linear`, and whose way to elect signs and join."""
    rescale: bool = True
    """Whether kept elements are made larger to make up for the dropped ones."""


def dare_linear(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: DareLinearOptions,
    context: Context,
) -> Tensor:
    """Base + sum_i c_i times the dropped and rescaled task vector.

    Args:
        base: Shape S, float32.
        finetuned: T pieces of shape S, float32.
        coefficients: T numbers.
        options: Density and dialect.
        context: Seed and names, which decide what is dropped, and the piece's place.

    Returns:
        Shape S, float32.
    """
    vectors = drop(base, finetuned, options, context)
    assert base is not None
    return weighted_sum(vectors, coefficients).add_(base)


def dare_ties(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: DareTiesOptions,
    context: Context,
) -> Tensor:
    """Base + the agreeing elements of the dropped and rescaled task vectors, joined.

    Arguments and result are those of `dare_linear`.
    """
    vectors = drop(base, finetuned, options, context)
    assert base is not None
    return join(vectors, coefficients, options, rule_of(options, options.dialect, "sum")).add_(base)


def drop(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    options: DareLinearOptions | DareTiesOptions,
    context: Context,
) -> list[Tensor]:
    """T task vectors of shape S, most elements zero and the others larger."""
    vectors = task_vectors(base, finetuned)
    densities = per_model(options.density, len(vectors))
    for vector, model, density in zip(vectors, context.models, densities, strict=True):
        if density >= 1:
            continue
        draws = uniform(context.seed, model, context.tensor, context.start, vector.numel())
        kept = draws.to(vector.device).view(vector.shape).lt_(density)
        if not options.rescale:
            vector.mul_(kept)
        elif options.dialect == "mergekit":
            drop_and_keep_sum(vector, kept)
        else:
            vector.mul_(kept).div_(density)
    return vectors


def drop_and_keep_sum(vector: Tensor, kept: Tensor) -> None:
    """Set the dropped elements to zero and rescale the others to the same sum of magnitudes.

    Args:
        vector: A whole tensor's task vector, any shape S, float32; changed.
        kept: Shape S, float32, 1 for what is kept and 0 for what is dropped.
    """
    before = float(vector.abs().sum(dtype=torch.float64))
    vector.mul_(kept)
    after = float(vector.abs().sum(dtype=torch.float64))
    if before >= SMALLEST_SUM and after >= SMALLEST_SUM:
        vector.mul_(before / after)


def dare_row(options: DareLinearOptions | DareTiesOptions) -> dict[str, Any]:
    """The sum of magnitudes that mergekit keeps is over a whole tensor."""
    changes: dict[str, Any] = {}
    if isinstance(options, DareTiesOptions):
        changes |= row_of(rule_of(options, options.dialect, "sum"))
    if options.dialect == "mergekit" and options.rescale:
        changes["unit"] = "matrix"
    return changes
