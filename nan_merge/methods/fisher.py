"""Fisher merging: an average in which every weight counts by how sure its model is of it.

arXiv 2111.09832, Equation 2: element by element,

    theta = sum_i c_i F_i theta_i / sum_i c_i F_i,

with F_i the diagonal of the model's Fisher information on its own task, a mean over examples of
squared gradients of the log-likelihood. Nothing is added to F_i: small numbers as other codes add
would turn the result into plain averaging where gradients are small. Elements that no example of
any model touched, and tensors without Fisher information, are averaged; the manifest says how many.

`coefficients`: they are divided by their sum. A model's log-posterior is a sum over its examples,
so its F_i, a mean, is weighed by how many there were; NAN's alpha is an estimate of just that
(arXiv 2505.16148, Equations 9 and 10).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from nan_merge.lazy_torch import torch
from nan_merge.methods.method import Context, refuse_negative, weighted_sum
from nan_merge.schema import StrictModel

if TYPE_CHECKING:
    from torch import Tensor


class FisherOptions(StrictModel):
    """Options of `method: fisher`."""

    name: Literal["fisher"] = "fisher"


def fisher(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: FisherOptions,
    context: Context,
) -> Tensor:
    """The mean of the models weighed by Fisher information, or by coefficients where there is none.

    Args:
        base: Not used.
        finetuned: T pieces of shape S, float32.
        coefficients: T numbers that sum to 1, none negative.
        options: None to set.
        context: T Fisher diagonals of shape S, none negative; none for tensors that are averaged.

    Returns:
        Shape S, float32.

    Raises:
        CoefficientError: If a coefficient is negative.
    """
    refuse_negative(coefficients, "Fisher merging")
    if not context.statistics:
        return weighted_sum(finetuned, coefficients)
    total = torch.zeros_like(finetuned[0], dtype=torch.float64)
    merged, average = torch.zeros_like(total), torch.zeros_like(total)
    for tensor, information, share in zip(finetuned, context.statistics, coefficients, strict=True):
        weight = information.double().mul_(share)
        exact = tensor.double()
        total.add_(weight)
        merged.add_(weight.mul_(exact))
        average.add_(exact.mul_(share))
    unknown = total == 0
    if num_unknown := int(unknown.sum()):
        context.report("averaged, as no example touched them", num_unknown)
    return torch.where(unknown, average, merged / torch.where(unknown, 1.0, total)).float()
