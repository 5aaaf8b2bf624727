"""From norms to shares: how much of the merged update belongs to each model.

`SHARES` is the table of coefficient sources that need norms. To add one: a pure function of T
sizes here, a row in the table, its name in `CoefficientSource` (recipe.py), a test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nan_merge.errors import CoefficientError
from nan_merge.methods.method import TensorNorms
from nan_merge.norms import sum_norms


@dataclass(frozen=True)
class SharesOf:
    """One row of the table.

    Attributes:
        share: From T sizes and the recipe's `power` to T numbers that sum to 1.
        size: A key of `SIZES`: what of a model's weights or task vector makes its share.
        inverts: Whether a size of zero has no share.
        target: "task_vector" if the source is about nothing else; None leaves it to the recipe.
        paper: Where it comes from.
    """

    share: Callable[[Sequence[float], float], tuple[float, ...]]
    size: Literal["norm", "rms", "variance"] = "norm"
    inverts: bool = True
    target: str | None = None
    paper: str = ""


def nan_alpha(norms: Sequence[float], power: float = 1.0) -> tuple[float, ...]:
    """Share of each model: its inverse norm over the sum of all (NAN, arXiv 2505.16148, Eq. 10).

    Args:
        norms: T Frobenius norms; positive and finite.
        power: Exponent of the norm; 1 in the paper.

    Returns:
        T numbers that sum to 1.

    Raises:
        ValueError: If a norm is zero, negative or not finite.
    """
    if not all(math.isfinite(norm) and norm > 0 for norm in norms):
        raise ValueError(f"norms must be positive and finite, got {list(norms)}")
    smallest = min(norms)  # ratios cannot overflow where inverses of powers could
    inverse = [(smallest / norm) ** power for norm in norms]
    total = math.fsum(inverse)
    return tuple(value / total for value in inverse)


def metagpt_alpha(norms: Sequence[float], power: float = 1.0) -> tuple[float, ...]:
    """Share of each model: its squared task-vector norm over the sum of all (MetaGPT).

    arXiv 2406.11385 minimises an upper bound of the average loss difference, with task vectors
    taken as orthogonal and models as linear around the base. The closed form of its optimum is
    `lambda_t = ||theta_t - theta_0||^2 / sum_k ||theta_k - theta_0||^2`: where NAN trusts short
    vectors, this trusts long ones.

    Args:
        norms: T norms of task vectors; finite, not all zero.
        power: Exponent on the squared norm; 1 in the paper.

    Returns:
        T numbers that sum to 1.

    Raises:
        ValueError: If a norm is negative or not finite, or all are zero.
    """
    if not all(math.isfinite(norm) and norm >= 0 for norm in norms) or not any(norms):
        raise ValueError(f"norms must be finite and not all zero, got {list(norms)}")
    largest = max(norms)
    squares = [(norm / largest) ** (2 * power) for norm in norms]
    total = math.fsum(squares)
    return tuple(value / total for value in squares)


SHARES: dict[str, SharesOf] = {
    "nan": SharesOf(nan_alpha, paper="arXiv:2505.16148"),
    "rms": SharesOf(nan_alpha, size="rms"),
    "variance": SharesOf(nan_alpha, size="variance"),
    "metagpt": SharesOf(
        metagpt_alpha, inverts=False, target="task_vector", paper="arXiv:2406.11385"
    ),
}


def frobenius_norms(norms: Sequence[TensorNorms], target: str) -> tuple[float, ...]:
    """T norms over all of these tensors together, of the weights or of the task vectors."""
    whole = sum_norms(norms)
    products = whole.weights if target == "weights" else whole.task_vectors
    return tuple(math.sqrt(row[place]) for place, row in enumerate(products))


def root_mean_squares(
    norms: Sequence[TensorNorms], num_elements: Sequence[int], target: str
) -> tuple[float, ...]:
    """Per model, the mean over tensors of `norm / sqrt(number of elements)`.

    Every tensor counts the same, however large. (Over all elements together it would say nothing
    new: all models have as many, so their number cancels and NAN's shares are left.)

    Args:
        norms: Of each tensor.
        num_elements: Of each tensor; empty tensors do not count.
        target: "weights" or "task_vector".
    """
    sizes = [
        [norm / math.sqrt(count) for norm in frobenius_norms([each], target)]
        for each, count in zip(norms, num_elements, strict=True)
        if count
    ]
    return tuple(math.fsum(column) / len(sizes) for column in zip(*sizes, strict=True))


def variances(
    norms: Sequence[TensorNorms], num_elements: Sequence[int], target: str
) -> tuple[float, ...]:
    """Per model, the variance of all elements about their mean.

    NAN's derivation takes the mean as zero, and then this is the squared norm over the number of
    elements (arXiv 2505.16148, Section 3.2).

    Args:
        norms: Of each tensor.
        num_elements: Of each tensor.
        target: "weights" or "task_vector".
    """
    whole, count = sum_norms(norms), sum(num_elements)
    of_weights = target == "weights"
    products = whole.weights if of_weights else whole.task_vectors
    sums = whole.weight_sums if of_weights else whole.task_vector_sums
    return tuple(
        max(0.0, row[place] / count - (total / count) ** 2)
        for place, (row, total) in enumerate(zip(products, sums, strict=True))
    )


Sizes = Callable[[Sequence[TensorNorms], Sequence[int], str], tuple[float, ...]]
SIZES: dict[str, Sizes] = {
    "norm": lambda norms, _, target: frobenius_norms(norms, target),
    "rms": root_mean_squares,
    "variance": variances,
}


def norm_scale(shares: Mapping[str, Sequence[float]], norms: Mapping[str, TensorNorms]) -> float:
    """The factor at which the merged update is as long as the mean task vector.

    `mean_i ||tau_i|| / ||sum_i a_i tau_i||`, from inner products alone; no data is needed. It is
    the length of the plain weighted sum, also for methods that trim or drop elements. The mean is
    over the models that have a share.

    Args:
        shares: Key -> T factors a_i before scaling, weights included.
        norms: Key -> inner products of the task vectors.

    Raises:
        CoefficientError: If the weighted task vectors cancel or are all zero.
    """
    whole = sum_norms(list(norms.values()))
    lengths = [
        math.sqrt(row[place])
        for place, row in enumerate(whole.task_vectors)
        if any(row_of_shares[place] for row_of_shares in shares.values())
    ]
    square = math.fsum(
        shares[key][i] * shares[key][j] * product
        for key, each in norms.items()
        for i, row in enumerate(each.task_vectors)
        for j, product in enumerate(row)
    )
    if square <= 0:
        raise CoefficientError(
            "`scale: norm` divides by the length of the weighted sum of task vectors, which is 0: "
            "the models learned nothing, or cancel each other. Give `scale` as a number."
        )
    return math.fsum(lengths) / len(lengths) / math.sqrt(square)
