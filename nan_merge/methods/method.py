"""What a merge method is: a pure function of corresponding pieces of tensors, and its needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from nan_merge.schema import StrictModel

Unit = Literal["element", "row", "matrix"]
Statistic = Literal["magnitude_threshold", "majority_sign"]


@dataclass(frozen=True)
class ModelStatistics:
    """Numbers over whole models that a method asked for before the merge.

    Attributes:
        magnitude_thresholds: Per model, the smallest |task vector| element that is kept, length T.
        majority_sign: -1.0 or 1.0, the sign that wins ties of the vote.
    """

    magnitude_thresholds: tuple[float, ...] = ()
    majority_sign: float = 1.0


# (base of shape S or None, T fine-tuned of shape S, T coefficients, options, statistics)
# -> shape S, all float32. S is whatever piece of a tensor the method's `unit` allows.
MergeFunction = Callable[
    [Tensor | None, Sequence[Tensor], Sequence[float], Any, ModelStatistics], Tensor
]


@dataclass(frozen=True)
class MergeMethod:
    """One row of the table of methods.

    Attributes:
        options: Schema of the recipe's `method` section; its `name` is the method's.
        merge: The pure function.
        paper: Where the method comes from.
        unit: The smallest piece that the function can be given: any elements, whole rows of the
            last axis, or whole matrices.
        needs: The statistics that must be known first.
        needs_base: Whether the recipe must name a base model.
        weights_sum_to_one: Whether the function divides by the sum of the coefficients, which
            cancels any global scale.
    """

    options: type[StrictModel]
    merge: MergeFunction
    paper: str
    unit: Unit = "element"
    needs: tuple[Statistic, ...] = ()
    needs_base: bool = True
    weights_sum_to_one: bool = False
