"""WUDI: the update that differs from each task's as little as possible where that task looks.

arXiv 2503.08099, "Whoever Started the Interference Should End It", Equation 9 and Algorithm 1: the
rows of a linear layer's task matrix lie in the span of the inputs that it was trained on, so these
rows stand for the inputs, and

    min over tau   sum_i ||(tau - tau_i) tau_i^T||^2 / ||tau_i||^2

keeps what every task's own inputs would notice. It is started from the sum of task vectors and
followed for 300 steps of Adam with learning rate 1e-5, as in the authors' code
(github.com/nathanielyvo/WUDI-Merging); stopping there is part of the method. Tensors that are no
matrices are averaged. This is RegMean (arXiv 2212.09849) with Gram matrices that need no data,
`tau_i^T tau_i / ||tau_i||^2`, stopped early.

`coefficients`: factors on the task vectors, in the sum that it starts from and in what it should
look like to each task; 1 in the paper. NAN's weighting and its scale both count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from nan_merge.lazy_torch import torch
from nan_merge.methods.matrices import MatrixOptions, is_matrix, mean_update, weighted_vectors
from nan_merge.methods.method import Context

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

COST = "`steps` products of every matrix with one of (inputs, inputs), 300 by default"
DECAYS, SMALL = (0.9, 0.999), 1e-8  # Adam's
# Up to so many times as many inputs as outputs, one matrix of (inputs, inputs) is cheaper than
# going through all models in each step, and small enough.
WIDE = 4


class WudiOptions(MatrixOptions):
    """Options of `method: wudi`."""

    name: Literal["wudi"] = "wudi"
    steps: int = Field(default=300, ge=0)
    """Steps of Adam."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Of Adam: an element moves by about so much in a step, whatever the size of the weights."""


def wudi(
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    options: WudiOptions,
    context: Context,
) -> Tensor:
    """Base plus the sum of task vectors, moved towards less interference.

    Args:
        base: Shape S, float32.
        finetuned: T tensors of shape S, float32.
        coefficients: T numbers.
        options: Steps, learning rate, and names to average.
        context: The tensor's name.

    Returns:
        Shape S, float32.
    """
    assert base is not None
    vectors = weighted_vectors(base, finetuned, coefficients)
    if not is_matrix(base, options, context):
        return mean_update(base, vectors)
    exact = [vector.double() for vector in vectors]
    update = torch.stack(exact).sum(dim=0)
    changed = [vector for vector in exact if vector.any()]  # an unchanged one notices nothing
    if changed:
        _follow(update, _gradient_of(changed), options)
    return update.float().add_(base)


def _gradient_of(vectors: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """The gradient of the loss: `2 sum_i (tau - tau_i) tau_i^T tau_i / ||tau_i||^2`."""
    squares = [vector.square().sum() for vector in vectors]
    outputs, inputs = vectors[0].shape
    if inputs > WIDE * outputs:

        def one_by_one(update: Tensor) -> Tensor:
            total = torch.zeros_like(update)
            for vector, square in zip(vectors, squares, strict=True):
                total.add_(((update - vector) @ vector.T @ vector) * (2 / square))
            return total

        return one_by_one
    gram, right = vectors[0].new_zeros(inputs, inputs), torch.zeros_like(vectors[0])
    for vector, square in zip(vectors, squares, strict=True):
        own = vector.T @ vector * (2 / square)
        gram.add_(own)
        right.addmm_(vector, own)
    return lambda update: (update @ gram).sub_(right)


def _follow(update: Tensor, gradient_of: Callable[[Tensor], Tensor], options: WudiOptions) -> None:
    """Adam, in place (arXiv 1412.6980, Algorithm 1)."""
    mean, square = torch.zeros_like(update), torch.zeros_like(update)
    for step in range(1, options.steps + 1):
        gradient = gradient_of(update)
        mean.lerp_(gradient, 1 - DECAYS[0])
        square.mul_(DECAYS[1]).addcmul_(gradient, gradient, value=1 - DECAYS[1])
        divisor = (square / (1 - DECAYS[1] ** step)).sqrt_().add_(SMALL)
        update.addcdiv_(mean, divisor, value=-options.learning_rate / (1 - DECAYS[0] ** step))
