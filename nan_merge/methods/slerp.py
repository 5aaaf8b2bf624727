"""SLERP: go from one model to another along an arc (Shoemake, "Animating rotation", 1985).

Per tensor, flattened: (sin((1-t) Omega) a + sin(t Omega) b) / sin(Omega), where Omega is the angle
between the two models' weights; a straight line where |cos Omega| > 0.9995. As in mergekit
(merge_methods/slerp.py) and FusionBench (method/slerp/slerp_utils.py), a tensor whose norm is at
most 1e-8 counts as orthogonal to the other. mergekit's `base_model` is simply the first of the two
models here, and its `t` the second one's share.

`coefficients`: they are divided by their sum and become (1 - t, t), so that the models' weights, or
one number per tensor, give t. NAN's alpha is used as it is: the model with the larger norm gets
the smaller share; its scale does not exist here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from nan_merge.methods.method import Context, weighted_sum
from nan_merge.schema import StrictModel

if TYPE_CHECKING:
    from torch import Tensor

STRAIGHT_FROM_COSINE = 0.9995
SMALLEST_NORM = 1e-8


class SlerpOptions(StrictModel):
    """Options of `method: slerp`."""

    name: Literal["slerp"] = "slerp"


def slerp(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: SlerpOptions,
    context: Context,
) -> Tensor:
    """A point on the arc between two models.

    Args:
        base: Not used.
        finetuned: 2 pieces of shape S, float32.
        coefficients: (1 - t, t).
        options: None to set.
        context: Inner products of the two models' weights over the whole tensor.

    Returns:
        Shape S, float32.
    """
    assert context.norms is not None
    (square_a, product), (_, square_b) = context.norms.weights
    cosine = _cosine(square_a, square_b, product)
    if abs(cosine) > STRAIGHT_FROM_COSINE:
        return weighted_sum(finetuned, coefficients)
    return weighted_sum(finetuned, arc_weights(math.acos(cosine), coefficients[1]))


def _cosine(square_a: float, square_b: float, product: float) -> float:
    norm_a, norm_b = math.sqrt(square_a), math.sqrt(square_b)
    # A model that is nearly zero here is not normalised: its cosine is then as small as it is.
    norm_a = norm_a if norm_a > SMALLEST_NORM else 1.0
    norm_b = norm_b if norm_b > SMALLEST_NORM else 1.0
    return max(-1.0, min(1.0, product / norm_a / norm_b))


def arc_weights(angle: float, t: float) -> tuple[float, float]:
    """The two factors of SLERP at share ``t`` of an arc of ``angle`` radians, not 0 or pi."""
    sine = math.sin(angle)
    return math.sin((1 - t) * angle) / sine, math.sin(t * angle) / sine
