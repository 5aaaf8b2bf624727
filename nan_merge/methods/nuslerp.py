"""NuSLERP: SLERP with one weight per model, on task vectors if there is a base.

From mergekit (merge_methods/nuslerp.py); there is no paper. t = w2 / (w1 + w2). With a base the arc
runs between the two task vectors and is added to the base, without one between the weights. A
straight line is taken only where the two are parallel (1 - cos^2 <= 1e-16). `vectors` says what is
one vector: the whole `tensor` (mergekit's default), each `row` of the last axis (mergekit:
`nuslerp_flatten: false`), or each `column` along the first axis (and `nuslerp_row_wise: true`).

`coefficients`: they are divided by their sum and become (1 - t, t); NAN's alpha is used as it is.
With a base, `target: task_vector` is the norm that belongs to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from nan_merge.lazy_torch import torch
from nan_merge.methods.method import Context, weighted_sum
from nan_merge.methods.slerp import arc_weights
from nan_merge.schema import StrictModel

if TYPE_CHECKING:
    from torch import Tensor

PARALLEL = 1e-16  # squared sine
SMALLEST_NORM = 1e-7


class NuslerpOptions(StrictModel):
    """Options of `method: nuslerp`."""

    name: Literal["nuslerp"] = "nuslerp"
    vectors: Literal["tensor", "row", "column"] = "tensor"
    """What goes along an arc of its own: the whole tensor, each row of the last axis, or each
    column along the first axis."""


def nuslerp(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: NuslerpOptions,
    context: Context,
) -> Tensor:
    """A point on the arc between two models or, with a base, between two task vectors.

    Args:
        base: Shape S, float32, or None.
        finetuned: 2 pieces of shape S, float32. S is any for `tensor`, (rows, columns) for `row`,
            the tensor's own for `column`.
        coefficients: (1 - t, t).
        options: What is one vector.
        context: Inner products over the whole tensor, for `tensor`.

    Returns:
        Shape S, float32.
    """
    ends = finetuned if base is None else [tensor.sub_(base) for tensor in finetuned]
    if options.vectors == "tensor":
        assert context.norms is not None
        gram = context.norms.weights if base is None else context.norms.task_vectors
        merged = weighted_sum(ends, flat_weights(gram, coefficients))
    else:
        merged = _along_axis(ends, coefficients[1], 0 if options.vectors == "column" else -1)
    return merged if base is None else merged.add_(base)


def flat_weights(
    gram: Sequence[Sequence[float]], coefficients: Sequence[float]
) -> tuple[float, float]:
    """The two factors from 2 x 2 inner products."""
    norms = [max(math.sqrt(gram[place][place]), SMALLEST_NORM) for place in (0, 1)]
    cosine = max(-1.0, min(1.0, gram[0][1] / norms[0] / norms[1]))
    if 1 - cosine * cosine <= PARALLEL:
        return coefficients[0], coefficients[1]
    return arc_weights(math.acos(cosine), coefficients[1])


def _along_axis(ends: Sequence[Tensor], t: float, axis: int) -> Tensor:
    """An arc for each vector along an axis; angles in float64, the result in float32."""
    if ends[0].dim() == 0 or ends[0].numel() == 0:
        return weighted_sum(ends, (1 - t, t))
    first, second = (end.double() for end in ends)
    norms = [end.norm(dim=axis, keepdim=True).clamp_min_(SMALLEST_NORM) for end in (first, second)]
    cosine = (
        (first * second).sum(dim=axis, keepdim=True).div_(norms[0]).div_(norms[1]).clamp_(-1, 1)
    )
    parallel = 1 - cosine.square() <= PARALLEL
    angle = torch.where(parallel, 1.0, cosine.acos())
    weights = [
        torch.where(parallel, share, torch.sin(share * angle) / torch.sin(angle))
        for share in (1 - t, t)
    ]
    return (first * weights[0] + second * weights[1]).float()


def nuslerp_row(options: NuslerpOptions) -> dict[str, Any]:
    """Only whole tensors' angles are gathered beforehand."""
    if options.vectors == "tensor":
        return {}
    return {"unit": "row" if options.vectors == "row" else "matrix", "needs": ()}
