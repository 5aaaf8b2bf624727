"""Passthrough: one model, copied, or scaled by its coefficient.

As in mergekit (merge_methods/passthrough.py), where the coefficient is called `scale`.

`coefficients`: 1 by default, and then every bit is kept (float64, as in every method, is rounded to
float32). NAN is refused: one model's share is always 1, and NAN's scale m/2 would halve its
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from nan_merge.methods.method import Context
from nan_merge.schema import StrictModel

if TYPE_CHECKING:
    from torch import Tensor

NAN_REFUSED = (
    "a single model has nothing to be weighed against, and NAN's scale m/2 would halve its "
    "weights; use `coefficients: uniform`"
)


class PassthroughOptions(StrictModel):
    """Options of `method: passthrough`."""

    name: Literal["passthrough"] = "passthrough"


def passthrough(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: PassthroughOptions,
    context: Context,
) -> Tensor:
    """The one model times its coefficient.

    Args:
        base: Not used.
        finetuned: 1 piece of shape S, float32.
        coefficients: 1 number.
        options: None to set.
        context: Not used.

    Returns:
        Shape S, float32.
    """
    return finetuned[0] if coefficients[0] == 1 else finetuned[0].mul_(coefficients[0])
