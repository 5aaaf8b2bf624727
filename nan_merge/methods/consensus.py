"""Elect signs and join what agrees: the last two steps of TIES, shared by every `*_ties` method.

Four published versions differ (files as of the versions in requirements/peers.txt):

| dialect       | vote on signs         | a tied vote goes to | agreeing elements c * vector are  |
|---------------|-----------------------|---------------------|-----------------------------------|
| `paper`       | sum of c * vector     | the majority sign   | summed, divided by their number   |
| `mergekit`    | sum of c * vector     | plus                | summed, maybe divided by sum of c |
| `peft`        | sum of vector or sign | plus                | summed, divided by their number   |
| `fusionbench` | sum of vector         | the majority sign   | summed                            |

`paper`: arXiv 2306.01708, Algorithm 1 (prateeky2806/ties-merging, src/ties_minimal.ipynb), with
the coefficients inside the vote. `mergekit`: merge_methods/generalized_task_arithmetic.py. `peft`:
utils/merge_utils.py. `fusionbench`: method/ties_merging/ties_merging_utils.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from nan_merge.lazy_torch import torch
from nan_merge.methods.method import Dialect, Program
from nan_merge.schema import StrictModel

if TYPE_CHECKING:
    from torch import Tensor

Disjoint = Literal["mean", "sum", "weighted_mean"]
Order = Literal["before", "after"]


class ConsensusOptions(StrictModel):
    """Options of every method that elects signs; its `dialect` sets their defaults."""

    disjoint: Disjoint | None = None
    """How agreeing elements are joined: `mean` divides by their number as in the TIES paper, `sum`
    not at all as in the code behind AdaMerging's and FusionBench's TIES rows, which the tables of
    arXiv 2505.16148 quote, and `weighted_mean` by the sum of their coefficients as in mergekit
    with `normalize`, which cancels any common factor of the coefficients. Default: the dialect's;
    mergekit's is `weighted_mean` for `ties` and `della_ties`, `sum` for the others."""
    order: Order | None = None
    """Whether coefficients weigh the vote on signs, or are applied after it. Default: the
    dialect's, `before` for paper and mergekit, `after` for peft and fusionbench."""
    elect: Literal["total", "frequency"] = "total"
    """Whether the vote adds up values or signs."""
    lambda_: float = Field(default=1.0, alias="lambda")
    """A factor on the joined update; unlike `coefficients.lambda` it also acts where a weighted
    mean cancels the coefficients' scale."""


class Rule(NamedTuple):
    """What the options come to once the dialect has filled the gaps."""

    disjoint: Disjoint
    order: Order
    tie_is_plus: bool


_RULES: dict[Dialect, Rule] = {
    "paper": Rule("mean", "before", tie_is_plus=False),
    "mergekit": Rule("weighted_mean", "before", tie_is_plus=True),
    "peft": Rule("mean", "after", tie_is_plus=True),
    "fusionbench": Rule("sum", "after", tie_is_plus=False),
}


def rule_of(
    options: ConsensusOptions, dialect: Dialect, mergekit_disjoint: Disjoint = "weighted_mean"
) -> Rule:
    """The rule for these options; mergekit divides in some of its methods and not in others."""
    rule = _RULES[dialect]
    if dialect == "mergekit":
        rule = rule._replace(disjoint=mergekit_disjoint)
    return rule._replace(
        disjoint=options.disjoint or rule.disjoint, order=options.order or rule.order
    )


def row_of(rule: Rule) -> dict[str, Any]:
    """What the rule changes of a method's row: a weighted mean divides by the coefficients."""
    return {"weights_sum_to_one": True} if rule.disjoint == "weighted_mean" else {}


def joining_program(
    options: ConsensusOptions, rule: Rule, majority_sign: float = 1.0, **sparsifying: Any
) -> Program:
    """`join` for the compiled kernel, after trimming or dropping."""
    return Program(
        join=rule.disjoint,
        weigh_first=rule.order == "before",
        by_sign=options.elect == "frequency",
        tie=1.0 if rule.tie_is_plus else majority_sign,
        factor=options.lambda_,
        **sparsifying,
    )


def vote(
    vectors: Sequence[Tensor], coefficients: Sequence[float], options: ConsensusOptions, rule: Rule
) -> Tensor:
    """Sum over the models whose sign is elected, shape S."""
    total = torch.zeros_like(vectors[0])
    for vector, coefficient in zip(vectors, coefficients, strict=True):
        ballot = vector * coefficient if rule.order == "before" else vector
        total += ballot.sign() if options.elect == "frequency" else ballot
    return total


def join(
    vectors: Sequence[Tensor],
    coefficients: Sequence[float],
    options: ConsensusOptions,
    rule: Rule,
    majority_sign: float = 1.0,
) -> Tensor:
    """The update: what agrees with the elected sign, joined.

    Args:
        vectors: T task vectors of shape S, float32, trimmed or dropped before.
        coefficients: T numbers.
        options: Kind of vote, and lambda.
        rule: Kind of join, order, and where ties go.
        majority_sign: -1.0 or 1.0, the sign that wins a tied vote unless plus does.

    Returns:
        Shape S, float32; zero where nothing agrees.
    """
    tie = 1.0 if rule.tie_is_plus else majority_sign
    elected = elected_signs(vote(vectors, coefficients, options, rule), tie)
    update = torch.zeros_like(elected)
    divisor = torch.zeros_like(elected)
    for vector, coefficient in zip(vectors, coefficients, strict=True):
        # Turned to the elected sign, what agrees is positive and all else is cut to zero. With
        # `before` the weighted vector is what agrees or not: a negative weight flips it.
        weigh_first = rule.order == "before"
        turned = (vector * coefficient).mul_(elected) if weigh_first else vector * elected
        agreeing = turned.clamp_min_(0.0)
        update += agreeing if weigh_first else agreeing * coefficient
        if rule.disjoint != "sum":
            counted = agreeing.sign_()
            divisor += counted.mul_(coefficient) if rule.disjoint == "weighted_mean" else counted
    if rule.disjoint == "mean":
        update /= divisor.clamp_min_(1.0)
    elif rule.disjoint == "weighted_mean":
        update /= without_zeros(divisor)
    update.mul_(elected)
    return update if options.lambda_ == 1 else update.mul_(options.lambda_)


def elected_signs(votes: Tensor, tie: float) -> Tensor:
    """1.0 or -1.0 for each vote, shape S; a vote of zero gives ``tie``.

    By copying sign bits, much faster than comparing: a sum that began with +0 is never -0, and
    0 - 0 is +0 too.
    """
    one = torch.ones((), device=votes.device)
    return torch.copysign(one, votes) if tie > 0 else torch.copysign(one, 0 - votes).neg_()


def without_zeros(divisor: Tensor) -> Tensor:
    """The divisor, shape S, with 1 in place of 0; there the dividend is zero too."""
    return divisor + divisor.sign().abs_().neg_().add_(1.0)
