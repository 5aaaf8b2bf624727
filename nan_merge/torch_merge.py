"""Merge runs by the torch functions of `nan_merge.methods`: every method, on a CPU or on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from nan_merge.blocks import Run, shape_of_block
from nan_merge.data_statistics import check_values
from nan_merge.dtypes import DType
from nan_merge.lazy_torch import torch
from nan_merge.measured import Measured, context_of, method_of
from nan_merge.recipe import MergeRecipe
from nan_merge.workers import current_reader

if TYPE_CHECKING:
    from torch import Tensor


def load_run(run: Run, stored: Sequence[np.ndarray], device: str) -> list[Tensor]:
    """A run of every input in its own type, flat, on the device."""
    return [tensor.to(device) for tensor in run.tensors(stored)]


def merge_run_by_torch(
    recipe: MergeRecipe,
    measured: Measured,
    run: Run,
    raw: Sequence[Tensor],
    dtype: DType,
    report: Callable[[str, float], None],
) -> np.ndarray | None:
    """One recipe's result for one run, block by block.

    Args:
        recipe: The method and its options.
        measured: Coefficients and statistics.
        run: What is merged.
        raw: What `load_run` gave for it.
        dtype: Of the result.
        report: Told what the method had to repair; see `Context`.

    Returns:
        The result's bytes; None if it is not all finite.
    """
    tensor, method, device = run.chunk.tensor, method_of(recipe), raw[0].device
    coefficients = measured.table.for_tensor(tensor.name)
    context = replace(context_of(recipe, measured, tensor), report=report)
    statistics = _read_statistics(recipe, measured, run, device)
    options = measured.options_of(tensor.name, recipe.method)
    merged = torch.empty(run.count, dtype=dtype.torch, device=device)
    for first, last in _blocks(run, device.type, method.unit):
        shape = shape_of_block(run.chunk, last - first, method.unit)
        base, models = _floats(run, raw, first, last)
        piece = method.merge(
            None if base is None else base.view(shape),
            [model.view(shape) for model in models],
            coefficients,
            options,
            replace(
                context,
                start=run.start + first,
                # Of the whole tensor for a matrix, which has one block.
                statistics=tuple(
                    each if method.unit == "matrix" else each[first:last] for each in statistics
                ),
            ),
        )
        merged[first:last] = piece.view(-1)
    return merged.cpu().view(torch.uint8).numpy() if merged.isfinite().all() else None


def _read_statistics(
    recipe: MergeRecipe, measured: Measured, run: Run, device: torch.device
) -> list[Tensor]:
    """What data said of each model about a run, in float32; whole Gram matrices."""
    method, found = method_of(recipe), list[torch.Tensor]()
    for info in measured.statistics.get(run.chunk.tensor.name, ()):
        assert method.reads is not None, "only methods that read statistics are given some"
        if method.reads == "gram":
            values = current_reader().read(info).view(info.shape)
        else:
            values = current_reader().read(info, run.start, run.count)
        found.append(check_values(method.reads, info, values.to(device, torch.float32)))
    return found


def _blocks(run: Run, device: str, unit: str) -> Iterator[tuple[int, int]]:
    """On a GPU a whole run, where the method takes any elements: small kernels would only wait."""
    return iter([(0, run.count)]) if device != "cpu" and unit == "element" else run.blocks()


def _floats(
    run: Run, raw: Sequence[Tensor], first: int, last: int
) -> tuple[Tensor | None, list[Tensor]]:
    """float32 copies, for methods may overwrite what they get."""
    if raw[0].device.type == "cpu":
        return run.floats(raw, first, last)
    pieces = [tensor[first:last].to(torch.float32, copy=True) for tensor in raw]
    return (pieces.pop(0) if run.chunk.tensor.base else None), pieces
