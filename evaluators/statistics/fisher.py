"""Fisher diagonals: per parameter, the mean over examples of the squared gradient of log p(y|x).

Merging Models with Fisher-Weighted Averaging (arXiv 2111.09832), Section 3.2. The expectation
over y is one draw from the model's own distribution for each example (`sampled`, unbiased), or
the label that the data gives (`given`, the so-called empirical Fisher).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

Labels = Literal["sampled", "given"]


def log_likelihood(
    logits: Tensor, labels: Tensor, kind: Labels, generator: torch.Generator
) -> Tensor:
    """Log-likelihood of an example's labels, summed over its rows.

    Args:
        logits: float (rows, classes).
        labels: int64 (rows,); not looked at for ``sampled``.
        kind: Whose labels.
        generator: Draws them.
    """
    scores = functional.log_softmax(logits, dim=-1)
    if kind == "sampled":
        chances = scores.detach().exp().cpu()
        labels = torch.multinomial(chances, 1, generator=generator)[:, 0].to(scores.device)
    return scores.gather(1, labels[:, None]).sum()


def fisher_diagonals(
    model: nn.Module,
    examples: Callable[[], Iterator[Any]],
    likelihood: Callable[[Any], Tensor],
    *,
    memory_bytes: int = 2 << 30,
) -> Iterator[dict[str, Tensor]]:
    """Fisher diagonals of a model, in groups of parameters; one pass of the data each.

    A gradient of a batch is a sum of gradients, whose square is no sum of squares: examples go
    through the model one by one.

    Args:
        model: In evaluation mode; on any device.
        examples: Gives the same examples every time it is called.
        likelihood: The log-likelihood of one example, a scalar that depends on the parameters.
        memory_bytes: What the parameters of a group may take together in float32; as much again
            goes for their gradients.

    Yields:
        Parameter's name -> mean of squared gradients, float32, of the parameter's shape, on the
        CPU; zero where no example touched it. The table is emptied when the next is asked for.
    """
    parameters = dict(model.named_parameters())
    wanted = {name: parameter.requires_grad for name, parameter in parameters.items()}
    try:
        for group in _groups(parameters, memory_bytes):
            for name, parameter in parameters.items():
                parameter.requires_grad_(name in group)
            means = _group_of(group, examples(), likelihood)
            yield means
            means.clear()  # before the next group is made
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(wanted[name])


def _group_of(
    group: Mapping[str, nn.Parameter],
    examples: Iterator[Any],
    likelihood: Callable[[Any], Tensor],
) -> dict[str, Tensor]:
    sums = {name: torch.zeros_like(each, dtype=torch.float32) for name, each in group.items()}
    num_examples = 0
    with torch.enable_grad():
        for example in examples:
            found = torch.autograd.grad(
                likelihood(example), list(group.values()), allow_unused=True
            )
            gradients = cast("Sequence[Tensor | None]", found)  # None where the example does not go
            for total, gradient in zip(sums.values(), gradients, strict=True):
                if gradient is not None:
                    own = gradient.float()
                    total.addcmul_(own, own)
            num_examples += 1
    return {name: total.div_(max(num_examples, 1)).cpu() for name, total in sums.items()}


def _groups(
    parameters: Mapping[str, nn.Parameter], memory_bytes: int
) -> list[dict[str, nn.Parameter]]:
    groups: list[dict[str, nn.Parameter]] = []
    filled = 0
    for name, parameter in parameters.items():
        size = 4 * parameter.numel()
        if not groups or filled + size > memory_bytes:
            groups.append({})
            filled = 0
        groups[-1][name] = parameter
        filled += size
    return groups
