"""DELLA: drop the smaller elements of each row more often than the larger (arXiv 2406.11617).

Section 3.1, MagPrune: the elements of a row are ranked by magnitude; the chance of being kept
grows in equal steps from density - epsilon for the smallest to density + epsilon for the largest,
and what is kept is divided by its own chance. The authors' code is declare-lab/della,
mergekit/mergekit/sparsify.py, rank_magnitude. A row is one of the last axis; a vector is one row;
a row of one element is kept with chance density (mergekit 0.1.5 stops there: 0/0). Ties rank in
order of their place.

`mergekit` (0.1.5, sparsify.py) ranks along the second axis where a tensor has three or more, and
keeps each tensor's sum of magnitudes instead of dividing by the chances; it takes tensors whole.

`della_ties` (mergekit calls it `della`) then elects signs as in `nan_merge.methods.consensus`, a
tied vote going to plus; the paper's steps "elect" and "fuse".

`coefficients`: any, NAN's included, as for `nan_merge.methods.dare`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from nan_merge.lazy_torch import torch
from nan_merge.methods.consensus import ConsensusOptions, join, row_of, rule_of
from nan_merge.methods.dare import rescale_of
from nan_merge.methods.method import (
    Context,
    PerModelShare,
    per_model,
    task_vectors,
    weighted_sum,
)
from nan_merge.methods.ranks import magnitude_ranks
from nan_merge.random import uniform
from nan_merge.schema import StrictModel
from nan_merge.tensor_options import OptionList, OptionValue, differs_by_tensor, in_range_of

Epsilon = Annotated[float, Field(ge=0)]
PerModelEpsilon = Annotated[Epsilon | OptionList, AfterValidator(in_range_of(Epsilon))]

if TYPE_CHECKING:
    from torch import Tensor


def check_chances(density: OptionValue, epsilon: OptionValue) -> None:
    """Refuse chances outside (0, 1); a density of 1 drops nothing and needs none.

    What differs by tensor is checked once it is known what the tensors are.
    """
    if differs_by_tensor(density) or differs_by_tensor(epsilon):
        return
    num_models = max(len(v) if isinstance(v, tuple) else 1 for v in (density, epsilon))
    shares, margins = per_model(density, num_models), per_model(epsilon, num_models)
    for share, margin in zip(shares, margins, strict=True):
        if share < 1 and not (share - margin > 0 and share + margin < 1):
            raise ValueError(
                f"density {share:g} plus and minus epsilon {margin:g} must lie between 0 and 1; "
                "make epsilon smaller"
            )


class DellaLinearOptions(StrictModel):
    """Options of `method: della_linear`."""

    name: Literal["della_linear"] = "della_linear"
    density: PerModelShare = 0.5
    """Mean chance of an element to be kept: a number, one per model, or gradients and rules by
    which it differs between tensors (`nan_merge.tensor_options`)."""
    epsilon: PerModelEpsilon = 0.15
    """How far the chances of a row's smallest and largest element lie from the density; in the
    forms of `density`."""
    dialect: Literal["paper", "mergekit"] = "paper"
    """`paper` divides by the chance, `mergekit` keeps each tensor's sum of magnitudes."""

    @model_validator(mode="after")
    def _chances_are_chances(self) -> Self:
        check_chances(self.density, self.epsilon)
        return self


class DellaTiesOptions(ConsensusOptions):
    """Options of `method: della_ties`."""

    name: Literal["della_ties"] = "della_ties"
    density: PerModelShare = 0.5
    """Mean chance of an element to be kept: a number, one per model, or gradients and rules by
    which it differs between tensors (`nan_merge.tensor_options`)."""
    epsilon: PerModelEpsilon = 0.15
    """How far the chances of a row's smallest and largest element lie from the density; in the
    forms of `density`."""
    dialect: Literal["paper", "mergekit"] = "paper"
    """Whose rescaling, as for `della_linear`, and whose way to elect signs and join."""

    @model_validator(mode="after")
    def _chances_are_chances(self) -> Self:
        check_chances(self.density, self.epsilon)
        return self


DellaOptions = DellaLinearOptions | DellaTiesOptions


def della_linear(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: DellaLinearOptions,
    context: Context,
) -> Tensor:
    """Base + sum_i c_i times the dropped and rescaled task vector.

    Args:
        base: Whole rows, (rows, columns); for `mergekit` the whole tensor. float32.
        finetuned: T pieces of the same shape, float32.
        coefficients: T numbers.
        options: Density, epsilon and dialect.
        context: Seed and names, which decide what is dropped, and the piece's place.

    Returns:
        The same shape, float32.
    """
    vectors = drop_by_rank(base, finetuned, options, context)
    assert base is not None
    return weighted_sum(vectors, coefficients).add_(base)


def della_ties(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: DellaTiesOptions,
    context: Context,
) -> Tensor:
    """Base + the agreeing elements of the dropped and rescaled task vectors, joined.

    Arguments and result are those of `della_linear`.
    """
    vectors = drop_by_rank(base, finetuned, options, context)
    assert base is not None
    return join(vectors, coefficients, options, rule_of(options, options.dialect)).add_(base)


def drop_by_rank(
    base: Tensor | None, finetuned: Sequence[Tensor], options: DellaOptions, context: Context
) -> list[Tensor]:
    """T task vectors of the pieces' shape, elements dropped by chance and rank."""
    vectors = task_vectors(base, finetuned)
    densities = per_model(options.density, len(vectors))
    epsilons = per_model(options.epsilon, len(vectors))
    numbers = zip(vectors, context.models, densities, epsilons, strict=True)
    for vector, model, density, epsilon in numbers:
        if density >= 1:
            continue
        axis = 1 if options.dialect == "mergekit" and vector.dim() > 1 else -1
        chances = rank_shares(vector, axis).mul_(2 * epsilon).add_(density - epsilon)
        draws = uniform(context.seed, model, context.tensor, context.start, vector.numel())
        kept = torch.lt(draws.to(vector.device).view(vector.shape), chances).to(vector.dtype)
        if options.dialect == "mergekit":
            drop_and_keep_sum(vector, kept)
        else:
            vector.mul_(kept).div_(chances)
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
    vector.mul_(rescale_of(before, after))


def rank_shares(vector: Tensor, axis: int) -> Tensor:
    """Rank of each magnitude along an axis: 0 for the smallest, 1 for the largest, float32.

    One element alone is neither: it has 0.5.
    """
    if vector.dim() == 0 or vector.shape[axis] <= 1:
        return torch.full_like(vector, 0.5)
    return magnitude_ranks(vector, axis).div_(vector.shape[axis] - 1)


def della_row(options: DellaOptions) -> dict[str, Any]:
    """The sum of magnitudes that mergekit keeps, and its axis, are of a whole tensor."""
    changes: dict[str, Any] = {}
    if isinstance(options, DellaTiesOptions):
        changes |= row_of(rule_of(options, options.dialect))
    if options.dialect == "mergekit":
        changes["unit"] = "matrix"
    return changes
