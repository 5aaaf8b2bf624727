"""DARE: drop elements of the task vectors at random and rescale the rest (arXiv 2311.03099).

Section 3.2: with drop rate p = 1 - density, m ~ Bernoulli(1 - p) and the vector becomes
m * vector / (1 - p), whose mean is the vector. Dropped before merging, as in the authors' code
(yule-BUAA/MergeLM, model_merging_methods/mask_weights_utils.py); `peft` and `fusionbench` do the
same. `mergekit` (sparsify.py) rescales instead so that the tensor's sum of magnitudes is kept;
the two sums, over all and over what is kept, are taken in a pass of their own before the merge.

`dare_ties` elects signs over what was not dropped and does not trim by magnitude besides, like
mergekit and PEFT; a tied vote goes to plus. MergeLM and FusionBench trim the dropped vectors once
more, over the whole model: that is not offered.

`coefficients`: any, NAN's included, whose norms are those before dropping. In expectation they act
as in Task Arithmetic. For `disjoint: weighted_mean` see `nan_merge.methods.ties`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from nan_merge.methods.consensus import ConsensusOptions, join, joining_program, row_of, rule_of
from nan_merge.methods.method import (
    Context,
    Dialect,
    PerModelShare,
    Program,
    per_model,
    task_vectors,
    weighted_sum,
)
from nan_merge.random import uniform
from nan_merge.schema import StrictModel

if TYPE_CHECKING:
    from torch import Tensor

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


AnyDareOptions = DareLinearOptions | DareTiesOptions


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
    options: AnyDareOptions,
    context: Context,
) -> list[Tensor]:
    """T task vectors of shape S, most elements zero and the others larger."""
    vectors = task_vectors(base, finetuned)
    densities = per_model(options.density, len(vectors))
    for place, (vector, density) in enumerate(zip(vectors, densities, strict=True)):
        if density >= 1:
            continue
        model = context.models[place]
        draws = uniform(context.seed, model, context.tensor, context.start, vector.numel())
        vector.mul_(draws.to(vector.device).view(vector.shape).lt_(density))
        if keeps_sums(options):
            vector.mul_(context.rescales[place])
        elif options.rescale:
            vector.div_(density)
    return vectors


def keeps_sums(options: AnyDareOptions) -> bool:
    """Whether each tensor keeps its sum of magnitudes."""
    return options.rescale and options.dialect == "mergekit"


def rescale_of(before: float, after: float) -> float:
    """What kept elements are multiplied by, from the sums of magnitudes of all and of the kept."""
    return before / after if min(before, after) >= SMALLEST_SUM else 1.0


def dare_row(options: AnyDareOptions) -> dict[str, Any]:
    """The sums of magnitudes that mergekit keeps are over a whole tensor."""
    changes: dict[str, Any] = {}
    if isinstance(options, DareTiesOptions):
        changes |= row_of(rule_of(options, options.dialect, "sum"))
    if keeps_sums(options):
        changes["needs"] = ("kept_sums",)
    return changes


def dare_program(options: AnyDareOptions, context: Context) -> Program:
    """`dare_linear` and `dare_ties` for the compiled kernel."""
    densities = per_model(options.density, len(context.models))
    dropping: dict[str, Any] = {"densities": densities}
    if keeps_sums(options):
        dropping |= {"rescaling": "multiply", "factors": context.rescales}
    elif options.rescale:
        dropping |= {"rescaling": "divide", "factors": densities}
    if isinstance(options, DareTiesOptions):
        return joining_program(options, rule_of(options, options.dialect, "sum"), **dropping)
    return Program(**dropping)
