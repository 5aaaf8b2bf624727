"""RegMean: the weights whose outputs are closest to every model's own on its own data.

arXiv 2212.09849, Equation 2 and Section 3.2: for linear layers with inputs X_i and weights W_i
(y = W x, shape outputs x inputs),

    W = (sum_i c_i W_i G_i) (sum_i c_i G_i)^-1,   G_i = a X_i^T X_i / rows + (1 - a) its diagonal,

with off-diagonal entries scaled by a = 0.9. This is Equation 8 of NAN (arXiv 2505.16148), whose
A_i = X_i^T X_i are rows_i times the means that are kept here: where models should count by their
numbers of rows, those are their `weight`. What has no Gram matrix (biases, norms, embeddings,
convolutions) is averaged with the same coefficients.

Where the sum of Gram matrices cannot be inverted, because an input never moved or fewer rows were
seen than there are inputs, every G_i gets a ridge, a small share of the mean diagonal, and the
manifest says so: directions that no data showed then keep the average of the models.

`coefficients`: they are divided by their sum, and stand for how much data each model learned from.
That is what NAN's alpha estimates (Equations 9 and 10), so NAN means here that Gram matrices,
which are means over samples, are weighed by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from nan_merge.lazy_torch import torch
from nan_merge.methods.method import Context, refuse_negative, weighted_sum
from nan_merge.schema import StrictModel

if TYPE_CHECKING:
    from torch import Tensor

RIDGE = 1e-6
SINGULAR = 1e-9  # smallest squared pivot, where the diagonal is 1
DEAD = 1e-14  # a diagonal entry below this share of the largest: an input that never moved


class RegmeanOptions(StrictModel):
    """Options of `method: regmean`."""

    name: Literal["regmean"] = "regmean"
    off_diagonal: float = Field(default=0.9, ge=0, le=1)
    """Factor on the off-diagonal entries of Gram matrices: 0.9 in the paper; 1 leaves them."""
    ridge: float | None = Field(default=None, ge=0)
    """Added to the diagonal, as a share of its mean. If absent, 1e-6, and only where the sum of
    Gram matrices cannot be inverted without."""


def regmean(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: RegmeanOptions,
    context: Context,
) -> Tensor:
    """The least-squares solution over the inputs of all models, or their average.

    Args:
        base: Not used.
        finetuned: T tensors of shape S, float32.
        coefficients: T numbers that sum to 1, none negative.
        options: Factor on off-diagonal entries, and ridge.
        context: T Gram matrices of shape (n, n), where n is the axis of S that meets the inputs;
            none for tensors that are averaged.

    Returns:
        Shape S, float32.

    Raises:
        CoefficientError: If a coefficient is negative.
    """
    refuse_negative(coefficients, "RegMean")
    if not context.statistics:
        return weighted_sum(finetuned, coefficients)
    gram, right = _normal_equations(finetuned, coefficients, options, context)
    mean_square = float(gram.diagonal().mean()) if len(gram) else 0.0
    if mean_square == 0:  # no input was ever other than zero
        context.report("averaged, as no input moved", gram.shape[0])
        return weighted_sum(finetuned, coefficients)
    ridge = options.ridge
    if ridge is None and _is_singular(gram):
        ridge = RIDGE
        context.report("ridge", ridge * mean_square)
    if ridge:
        average = weighted_sum([tensor.double() for tensor in finetuned], coefficients)
        gram.diagonal().add_(ridge * mean_square)
        right.add_(_outputs_first(average, context), alpha=ridge * mean_square)
    factor = torch.linalg.cholesky(gram)
    solved = torch.cholesky_solve(right.T, factor).float()  # (inputs, outputs)
    return solved.contiguous() if context.inputs_first else solved.T.contiguous()


def _normal_equations(
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: RegmeanOptions,
    context: Context,
) -> tuple[Tensor, Tensor]:
    """`sum c_i G_i`, (inputs, inputs), and `sum c_i W_i G_i`, (outputs, inputs), in float64."""
    total = torch.zeros_like(context.statistics[0], dtype=torch.float64)
    first = _outputs_first(finetuned[0], context)
    right = torch.zeros_like(first, dtype=torch.float64)
    for tensor, gram, share in zip(finetuned, context.statistics, coefficients, strict=True):
        own = gram.double()
        own = own.mul(options.off_diagonal * share) + torch.diag(
            own.diagonal() * ((1 - options.off_diagonal) * share)
        )
        total.add_(own)
        right.addmm_(_outputs_first(tensor, context).double(), own)
    return total, right


def _outputs_first(tensor: Tensor, context: Context) -> Tensor:
    return tensor.T if context.inputs_first else tensor


def _is_singular(gram: Tensor) -> bool:
    """Whether some combination of inputs was never seen; their scales do not matter."""
    squares = gram.diagonal()
    if float(squares.min()) <= DEAD * float(squares.max()):
        return True
    lengths = squares.sqrt()
    factor, failed = torch.linalg.cholesky_ex(gram / lengths[:, None] / lengths)
    return bool(failed) or float(factor.diagonal().min()) ** 2 <= SINGULAR
