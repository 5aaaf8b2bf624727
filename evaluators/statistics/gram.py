"""Gram matrices of the inputs that every weight of a model is multiplied with (for RegMean).

Products are watched below the modules, where torch has turned every linear layer into a product
of matrices: fused attention projections (`in_proj_weight`), output projections that no module of
their own computes, and plain `x @ w` are found as `nn.Linear` is, whatever the architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

FLOAT32_BYTES = 4
aten = torch.ops.aten
# Operator -> where its arguments have the inputs and the weight as (inputs, outputs).
PRODUCTS = {aten.mm.default: (0, 1), aten.addmm.default: (1, 2)}


@dataclass(frozen=True)
class GramMatrix:
    """What met one weight.

    Attributes:
        mean: `X^T X / rows`, float32 (inputs, inputs).
        rows: How many rows X had in all.
        inputs_first: Whether the weight's first axis meets the inputs.
    """

    mean: Tensor
    rows: int
    inputs_first: bool


@dataclass(frozen=True)
class _Weight:
    name: str
    parameter: nn.Parameter


class _Watch(TorchDispatchMode):
    """Calls back with a weight's name, its inputs (rows, inputs) and whether its first axis met."""

    def __init__(
        self, weights: Mapping[str, nn.Parameter], found: Callable[[str, Tensor, bool], None]
    ) -> None:
        super().__init__()
        self._found = found
        self._weights = {
            parameter.untyped_storage().data_ptr(): _Weight(name, parameter)
            for name, parameter in weights.items()
        }

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in PRODUCTS:
            inputs, operand = (args[place] for place in PRODUCTS[func])
            weight = self._weights.get(operand.untyped_storage().data_ptr())
            if weight is not None and operand.numel() == weight.parameter.numel():
                own = weight.parameter
                as_it_is = operand.shape == own.shape and operand.stride() == own.stride()
                self._found(weight.name, inputs, as_it_is)
        return result


def matrix_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter, for matrices that are no embedding: a token's row is looked up there."""
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and id(parameter) not in embeddings
    }


@torch.no_grad()
def gram_matrices(
    model: nn.Module,
    batches: Callable[[], Iterator[Any]],
    forward: Callable[[Any], object],
    *,
    memory_bytes: int = 2 << 30,
) -> Iterator[dict[str, GramMatrix]]:
    """Gram matrices of a model, in groups that fit the memory; one pass of the data each.

    Args:
        model: In evaluation mode; on any device.
        batches: Gives the same data every time it is called; without padding, whose rows would
            count.
        forward: Runs the model on a batch.
        memory_bytes: What the Gram matrices of a group may take together; a single one that takes
            more is a group of its own.

    Yields:
        Parameter's name -> its Gram matrix, on the CPU; the table is emptied when the next is asked
        for. Parameters that met no input are left out.
    """
    weights, found = matrix_parameters(model), dict[str, tuple[int, bool]]()

    def note(name: str, inputs: Tensor, inputs_first: bool) -> None:
        found[name] = (inputs.shape[1], inputs_first)

    _watch(weights, note, list(_first(batches())), forward)
    for group in _groups({name: width for name, (width, _) in found.items()}, memory_bytes):
        sums: dict[str, Tensor] = {}
        rows = dict.fromkeys(group, 0)

        def add(
            name: str,
            inputs: Tensor,
            inputs_first: bool,
            sums: dict[str, Tensor] = sums,
            rows: dict[str, int] = rows,
        ) -> None:
            own = inputs.float()
            if name not in sums:
                sums[name] = own.new_zeros(own.shape[1], own.shape[1])
            sums[name].addmm_(own.T, own)
            rows[name] += len(own)

        _watch({name: weights[name] for name in group}, add, batches(), forward)
        means = {
            name: GramMatrix(total.div_(rows[name]).cpu(), rows[name], found[name][1])
            for name, total in sums.items()
        }
        yield means
        sums.clear()  # before the next group is made
        means.clear()


def _first(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        yield batch
        return


def _watch(
    weights: Mapping[str, nn.Parameter],
    found: Callable[[str, Tensor, bool], None],
    batches: Any,
    forward: Callable[[Any], object],
) -> None:
    fused = torch.backends.mha.get_fastpath_enabled()
    # Its one operator for a whole attention layer hides what meets the projections.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _Watch(weights, found):
            for batch in batches:
                forward(batch)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _groups(widths: Mapping[str, int], memory_bytes: int) -> list[list[str]]:
    groups: list[list[str]] = []
    filled = 0
    for name, width in widths.items():
        size = width * width * FLOAT32_BYTES
        if not groups or filled + size > memory_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups
