"""Task Arithmetic: add scaled task vectors to the base (arXiv 2212.04089)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from nan_merge.methods.method import Context, Program
from nan_merge.schema import StrictModel

if TYPE_CHECKING:
    from torch import Tensor


class TaskArithmeticOptions(StrictModel):
    """Options of `method: task_arithmetic`."""

    name: Literal["task_arithmetic"] = "task_arithmetic"


def task_arithmetic(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: TaskArithmeticOptions,
    context: Context,
) -> Tensor:
    """Base + sum_i c_i (finetuned_i - base), summed in the recipe's order.

    Args:
        base: Shape S, float32.
        finetuned: T pieces of shape S, float32.
        coefficients: T numbers.
        options: None to set.
        context: Not used.

    Returns:
        Shape S, float32.
    """
    assert base is not None
    # Multiply, then add: torch fuses `add(alpha=)` in some elements and not in others, and then
    # the last bit would depend on where a piece begins.
    update = finetuned[0].sub_(base).mul_(coefficients[0])
    for tensor, coefficient in zip(finetuned[1:], coefficients[1:], strict=True):
        update.add_(tensor.sub_(base).mul_(coefficient))
    return update.add_(base)


def task_arithmetic_program(options: TaskArithmeticOptions, context: Context) -> Program:
    """`task_arithmetic` for the compiled kernel."""
    return Program()
