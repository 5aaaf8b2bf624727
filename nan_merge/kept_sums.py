"""Sums of magnitudes before and after dropping at random, for methods that keep the sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nan_merge.blocks import Chunk, cut
from nan_merge.layout import AlignedTensor
from nan_merge.random import stream_keys
from nan_merge.raw_runs import kernel_scratch, raw_runs, run_raw


@dataclass(frozen=True)
class Drop:
    """A way to drop elements.

    Attributes:
        seed: Of the draws.
        models: T names, which decide draws too.
        densities: T chances of an element to be kept.
    """

    seed: int
    models: tuple[str, ...]
    densities: tuple[float, ...]


# For each of T models: the sum of magnitudes of its task vector, and of what is kept of that.
KeptSums = list[tuple[float, float]]


def measure_kept_sums(
    tensors: Sequence[AlignedTensor], drops: Mapping[str, Sequence[Drop]], workers: int = 1
) -> dict[str, list[KeptSums]]:
    """Tensor's name -> for each of its drops, the two sums of every model."""
    merged = [tensor for tensor in tensors if tensor.is_merged]
    chunks = cut(merged)
    parts: dict[str, list[np.ndarray]] = {tensor.name: [] for tensor in merged}

    def measure_chunk(chunk: Chunk) -> np.ndarray:
        return _measure_chunk(chunk, drops[chunk.tensor.name])

    measured = run_raw(measure_chunk, chunks, workers)
    for chunk, sums in zip(chunks, measured, strict=True):
        parts[chunk.tensor.name].append(sums)
    return {name: _reduce(found) for name, found in parts.items()}


def _measure_chunk(chunk: Chunk, drops: Sequence[Drop]) -> np.ndarray:
    """Shape (drops, T, 2)."""
    from nan_merge.kernels.kept_sums import add_magnitudes
    from nan_merge.kernels.lanes import LANES

    lanes = np.zeros((len(drops), len(chunk.tensor.finetuned), 2, LANES))
    keys = [stream_keys(drop.seed, drop.models, chunk.tensor.name) for drop in drops]
    densities = [np.array(drop.densities, np.float32) for drop in drops]
    for run in raw_runs(chunk):
        for place in range(len(drops)):
            add_magnitudes(
                run.rows,
                run.codes,
                run.start,
                run.count,
                densities[place],
                keys[place],
                kernel_scratch(chunk),
                lanes[place],
            )
    return np.array([[[math.fsum(part) for part in row] for row in each] for each in lanes])


def _reduce(parts: Sequence[np.ndarray]) -> list[KeptSums]:
    stacked = np.stack(parts)
    return [
        [
            (math.fsum(stacked[:, drop, model, 0]), math.fsum(stacked[:, drop, model, 1]))
            for model in range(stacked.shape[2])
        ]
        for drop in range(stacked.shape[1])
    ]
