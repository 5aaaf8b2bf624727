"""Model Stock: from the base towards the mean of the models, as far as their angle says.

arXiv 2403.19522, Section 4: t = N cos(theta) / (1 + (N - 1) cos(theta)), and the result is
t * mean + (1 - t) * base, with theta the angle between task vectors, per tensor. For more than two
models `paper` takes the mean of the pairs' cosines (as mergekit, merge_methods/model_stock.py),
`fusionbench` the cosine of the mean of their angles (method/model_stock/model_stock.py).
`vectors: row` takes an angle for each row of the last axis (mergekit: `filter_wise`).

Where 1 + (N - 1) cos(theta) is smaller than 1e-6 there is no such point and the base stays, as in
mergekit. A zero task vector is orthogonal to every other. mergekit 0.1.5 divides by at least 1e-6
instead of by the product of two norms, which draws small tensors to the base; here it is exact.

`coefficients`: equal ones only. The ratio t is derived for the plain mean of the models, so other
weights, NAN's included, are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from nan_merge.errors import CoefficientError
from nan_merge.lazy_torch import torch
from nan_merge.methods.method import Context, task_vectors, weighted_sum
from nan_merge.schema import StrictModel

if TYPE_CHECKING:
    from torch import Tensor

SINGULAR = 1e-6
NAN_REFUSED = (
    "Model Stock's interpolation ratio is derived for the plain mean of the models; "
    "use `coefficients: uniform`"
)


class ModelStockOptions(StrictModel):
    """Options of `method: model_stock`."""

    name: Literal["model_stock"] = "model_stock"
    vectors: Literal["tensor", "row"] = "tensor"
    """What has an angle of its own: the whole tensor, or each row of the last axis."""
    dialect: Literal["paper", "mergekit", "fusionbench"] = "paper"
    """With more than two models `fusionbench` averages angles, the others cosines."""


def model_stock(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: ModelStockOptions,
    context: Context,
) -> Tensor:
    """Base + t times the mean task vector.

    Args:
        base: Shape S, float32; (rows, columns) for `vectors: row`.
        finetuned: T >= 2 pieces of shape S, float32.
        coefficients: T equal numbers.
        options: What has an angle.
        context: Inner products of the task vectors over the whole tensor, for `tensor`.

    Returns:
        Shape S, float32.

    Raises:
        CoefficientError: If the coefficients are not equal.
    """
    assert base is not None
    refuse_unequal(coefficients)
    vectors = task_vectors(base, finetuned)
    if options.vectors == "row":
        ratio: float | Tensor = ratio_of(_row_cosines(vectors), options, len(vectors)).float()
    else:
        assert context.norms is not None
        ratio = float(ratio_of(gram_cosines(context.norms.task_vectors), options, len(vectors)))
    mean = weighted_sum(vectors, [1 / len(vectors)] * len(vectors))
    return mean.mul_(ratio).add_(base)


def refuse_unequal(coefficients: Sequence[float]) -> None:
    """Refuse all but the plain mean.

    Raises:
        CoefficientError: If the coefficients are not equal.
    """
    if len(set(coefficients)) > 1:
        raise CoefficientError(
            f"Model Stock was given the coefficients {list(coefficients)}: {NAN_REFUSED}, and "
            "models without `weight`."
        )


def gram_cosines(gram: Sequence[Sequence[float]]) -> Tensor:
    """Cosine of each pair of T task vectors, shape (pairs,), float64, from inner products."""
    pairs = combinations(range(len(gram)), 2)
    norms = [math.sqrt(gram[place][place]) for place in range(len(gram))]
    cosines = [
        gram[a][b] / norms[a] / norms[b] if norms[a] > 0 and norms[b] > 0 else 0.0 for a, b in pairs
    ]
    return torch.tensor(cosines, dtype=torch.float64)


def _row_cosines(vectors: Sequence[Tensor]) -> Tensor:
    """Cosine of each pair in each row, shape (pairs, rows, 1), float64."""
    cosines: list[Tensor] = []
    for a, b in combinations([vector.double() for vector in vectors], 2):
        norms = a.norm(dim=-1, keepdim=True) * b.norm(dim=-1, keepdim=True)
        product = (a * b).sum(dim=-1, keepdim=True)
        cosines.append(torch.where(norms > 0, product / norms, 0.0))
    return torch.stack(cosines)


def ratio_of(cosines: Tensor, options: ModelStockOptions, num_models: int) -> Tensor:
    """The ratio t from the pairs' cosines, shape (pairs, ...) -> (...), float64."""
    cosines = cosines.clamp(-1, 1)
    averages_angles = options.dialect == "fusionbench"
    cosine = cosines.acos().mean(dim=0).cos() if averages_angles else cosines.mean(dim=0)
    divisor = 1 + (num_models - 1) * cosine
    singular = divisor.abs() < SINGULAR
    return torch.where(singular, 0.0, num_models * cosine / torch.where(singular, 1.0, divisor))


def model_stock_row(options: ModelStockOptions) -> dict[str, Any]:
    """Only whole tensors' angles are gathered beforehand."""
    return {"unit": "row", "needs": ()} if options.vectors == "row" else {}
