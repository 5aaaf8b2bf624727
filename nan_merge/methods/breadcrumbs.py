"""Breadcrumbs: leave out the largest and the smallest elements (arXiv 2312.06795, Section 3).

Per layer, which here is per tensor: the `gamma` largest magnitudes are outliers and go; of the
others the `density` largest stay, counted in shares of all the tensor's elements. `rows: true`
does it in each row of the last axis, which is what the authors' code does
(rezazzr/breadcrumbs, src/task_vectors.py, TaskVectorMiddleKeep, which leaves scalars alone).
`mergekit` (sparsify.py, magnitude_outliers) takes whole tensors and may keep nothing of a very
small one; otherwise at least one element stays. If gamma + density exceeds 1, fewer outliers go.
Elements tied with either end are all kept; mergekit's sort picks among them.

`breadcrumbs_ties` then elects signs as in `nan_merge.methods.consensus`, a tied vote going to
plus. It comes from mergekit; the paper has no such step.

`coefficients`: any, NAN's included, whose norms are those of the whole task vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from nan_merge.lazy_torch import torch
from nan_merge.methods.consensus import ConsensusOptions, join, row_of, rule_of
from nan_merge.methods.method import (
    Context,
    PerModelShare,
    per_model,
    task_vectors,
    weighted_sum,
)
from nan_merge.methods.ranks import kth_smallest
from nan_merge.schema import StrictModel
from nan_merge.tensor_options import OptionList, in_range_of

if TYPE_CHECKING:
    from torch import Tensor

Gamma = Annotated[float, Field(ge=0, lt=1)]
PerModelGamma = Annotated[Gamma | OptionList, AfterValidator(in_range_of(Gamma))]


class BreadcrumbsOptions(StrictModel):
    """Options of `method: breadcrumbs`."""

    name: Literal["breadcrumbs"] = "breadcrumbs"
    density: PerModelShare = 0.1
    """Share of the elements that is kept: a number, one per model, or gradients and rules by which
    it differs between tensors (`nan_merge.tensor_options`)."""
    gamma: PerModelGamma = 0.01
    """Share of the elements, the largest, that is left out; in the forms of `density`."""
    rows: bool = False
    """Whether shares are of each row of the last axis instead of the whole tensor."""
    dialect: Literal["paper", "mergekit"] = "paper"
    """`mergekit` may keep no element of a very small tensor, `paper` keeps at least one."""


class BreadcrumbsTiesOptions(ConsensusOptions):
    """Options of `method: breadcrumbs_ties`."""

    name: Literal["breadcrumbs_ties"] = "breadcrumbs_ties"
    density: PerModelShare = 0.1
    """Share of the elements that is kept: a number, one per model, or gradients and rules by which
    it differs between tensors (`nan_merge.tensor_options`)."""
    gamma: PerModelGamma = 0.01
    """Share of the elements, the largest, that is left out; in the forms of `density`."""
    rows: bool = False
    """Whether shares are of each row of the last axis instead of the whole tensor."""
    dialect: Literal["paper", "mergekit"] = "paper"
    """As for `breadcrumbs`, and whose way to elect signs and join."""


AnyBreadcrumbsOptions = BreadcrumbsOptions | BreadcrumbsTiesOptions


def breadcrumbs(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: BreadcrumbsOptions,
    context: Context,
) -> Tensor:
    """Base + sum_i c_i times the task vector without its largest and smallest elements.

    Args:
        base: A whole tensor, or with `rows` whole rows (rows, columns); float32.
        finetuned: T pieces of the same shape, float32.
        coefficients: T numbers.
        options: Density and gamma.
        context: Not used.

    Returns:
        The same shape, float32.
    """
    vectors = keep_middle(base, finetuned, options)
    assert base is not None
    return weighted_sum(vectors, coefficients).add_(base)


def breadcrumbs_ties(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: BreadcrumbsTiesOptions,
    context: Context,
) -> Tensor:
    """Base + the agreeing elements of the task vectors without their ends, joined.

    Arguments and result are those of `breadcrumbs`.
    """
    vectors = keep_middle(base, finetuned, options)
    assert base is not None
    rule = rule_of(options, options.dialect, "sum")
    return join(vectors, coefficients, options, rule).add_(base)


def keep_middle(
    base: Tensor | None, finetuned: Sequence[Tensor], options: AnyBreadcrumbsOptions
) -> list[Tensor]:
    """T task vectors with the largest and smallest elements set to zero."""
    vectors = task_vectors(base, finetuned)
    densities = per_model(options.density, len(vectors))
    gammas = per_model(options.gamma, len(vectors))
    for vector, density, gamma in zip(vectors, densities, gammas, strict=True):
        if density >= 1 or vector.numel() == 0:
            continue
        magnitudes = vector.abs()
        rows = magnitudes.view(-1, vector.shape[-1]) if options.rows else magnitudes.view(1, -1)
        lowest, highest = kept_ranks(rows.shape[1], density, gamma, options.dialect)
        if highest < lowest:
            vector.zero_()
            continue
        low, high = kth_smallest(rows, [lowest, highest])
        kept = torch.ge(rows, low).logical_and_(rows <= high)
        vector.mul_(kept.to(vector.dtype).view(vector.shape))
    return vectors


def kept_ranks(num_elements: int, density: float, gamma: float, dialect: str) -> tuple[int, int]:
    """Lowest and highest rank (from 1, ascending) that is kept; none if the second is smaller."""
    kept = max(int(density * num_elements), 0 if dialect == "mergekit" else 1)
    num_below = max(0, num_elements - kept - int(gamma * num_elements))
    return num_below + 1, num_below + kept


def breadcrumbs_row(options: AnyBreadcrumbsOptions) -> dict[str, Any]:
    """Rows can come in pieces."""
    changes: dict[str, Any] = {}
    if isinstance(options, BreadcrumbsTiesOptions):
        changes |= row_of(rule_of(options, options.dialect, "sum"))
    if options.rows:
        changes["unit"] = "row"
    return changes
