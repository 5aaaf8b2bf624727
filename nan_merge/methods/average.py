"""Weighted averaging of the fine-tuned weights (model soups, arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from nan_merge.methods.method import Context, Program
from nan_merge.schema import StrictModel

if TYPE_CHECKING:
    from torch import Tensor


class AverageOptions(StrictModel):
    """Options of `method: average`."""

    name: Literal["average"] = "average"


def average(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: AverageOptions,
    context: Context,
) -> Tensor:
    """Sum of the models times their coefficients, which sum to 1.

    Args:
        base: Not used.
        finetuned: T pieces of shape S, float32.
        coefficients: T numbers that sum to 1.
        options: None to set.
        context: Not used.

    Returns:
        Shape S, float32.
    """
    merged = finetuned[0].mul_(coefficients[0])
    for tensor, coefficient in zip(finetuned[1:], coefficients[1:], strict=True):
        merged.add_(tensor.mul_(coefficient))
    return merged


def average_program(options: AverageOptions, context: Context) -> Program:
    """`average` for the compiled kernel."""
    return Program(uses_base=False)
