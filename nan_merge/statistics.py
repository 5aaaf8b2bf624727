"""Magnitude thresholds: which task-vector elements are large enough to be kept.

All is counted, and counts are integers, so the result does not depend on how the work was shared
out, nor on any sort.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from nan_merge.blocks import Chunk, cut
from nan_merge.methods.method import Dialect
from nan_merge.methods.ties import kept_rank
from nan_merge.plan import AlignedTensor
from nan_merge.raw_runs import kernel_scratch, raw_runs, run_raw

COARSE_BITS, FINE_BITS = 15, 16  # together the 31 bits of a float32 magnitude


def count_magnitudes(
    tensors: Sequence[AlignedTensor], bins: list[list[int]] | None = None, workers: int = 1
) -> np.ndarray:
    """Histograms of task-vector magnitudes over the bits of their float32 numbers.

    Args:
        tensors: What to count; at least one.
        bins: None to count by the 15 leading bits; or, for each of T models, K values of those,
            inside which the 16 other bits are counted.
        workers: Threads to count on.

    Returns:
        int64 counts, shape (T, 2**15) or (T, K, 2**16).
    """
    total: np.ndarray | None = None
    merged = [tensor for tensor in tensors if tensor.is_merged]
    for _, counts in _count_tensors(merged, {t.name: bins for t in merged}, workers):
        total = counts if total is None else total + counts
    assert total is not None
    return total


def _count_tensors(
    tensors: Sequence[AlignedTensor],
    bins: dict[str, list[list[int]] | None],
    workers: int,
) -> Iterator[tuple[AlignedTensor, np.ndarray]]:
    """Each tensor's histograms, as soon as its last chunk is counted."""
    chunks = cut(tensors)
    counted = run_raw(lambda chunk: _count_chunk(chunk, bins[chunk.tensor.name]), chunks, workers)
    total: np.ndarray | None = None
    for chunk, counts in zip(chunks, counted, strict=True):
        total = counts if total is None else total + counts
        if chunk.start + chunk.count == chunk.tensor.reference.num_elements:
            yield chunk.tensor, total
            total = None


def _count_chunk(chunk: Chunk, bins: list[list[int]] | None) -> np.ndarray:
    from nan_merge.kernels.magnitudes import count_coarse, count_fine

    assert chunk.tensor.base is not None, "thresholds are of task vectors, which need a base"
    num_models = len(chunk.tensor.finetuned)
    if bins is None:
        halves = np.zeros((2, num_models, 1 << COARSE_BITS), np.int64)
        for run in raw_runs(chunk):
            count_coarse(run.rows, run.codes, run.count, kernel_scratch(chunk), halves)
        return halves.sum(axis=0)
    counts = np.zeros((num_models, len(bins[0]), 1 << FINE_BITS), np.int64)
    chosen = np.array(bins, np.int64)
    for run in raw_runs(chunk):
        count_fine(run.rows, run.codes, run.count, chosen, kernel_scratch(chunk), counts)
    return counts


def find_rank(histogram: np.ndarray, rank: int) -> tuple[int, int]:
    """The bin that holds the ``rank``-th smallest value (from 1), and its rank inside that bin."""
    cumulative = np.cumsum(histogram)
    chosen = int(np.searchsorted(cumulative, rank))
    return chosen, rank - int(cumulative[chosen - 1] if chosen else 0)


def bits_to_float(bits: int) -> float:
    """The float32 number with these bits."""
    return float(np.array(bits, dtype=np.uint32).view(np.float32))


# One way to trim: whose rule for the rank, and the share of each of T models that is kept.
Trim = tuple[Dialect, tuple[float, ...]]
# None for the coarse histogram, or bins for the fine ones -> counts; where the counting is done
CountMagnitudes = Callable[[list[list[int]] | None], np.ndarray]


def select_thresholds(trims: Sequence[Trim], count: CountMagnitudes) -> list[tuple[float, ...]]:
    """Exact magnitudes from which elements are kept, without sorting: two rounds of counting.

    Args:
        trims: Dialect and densities of each of K trims.
        count: Gives the coarse histogram for None, else the fine ones of the bins given.

    Returns:
        For each trim, a threshold for each of T models: 0 if it keeps all, infinity if none.
    """
    coarse = count(None)
    bins = fine_bins(trims, coarse)
    return thresholds_from_counts(trims, coarse, count(bins))


def _ranks(trims: Sequence[Trim], coarse: np.ndarray) -> list[list[int]]:
    return [
        [kept_rank(dialect, densities[model], int(row.sum())) for dialect, densities in trims]
        for model, row in enumerate(coarse)
    ]


def _places(trims: Sequence[Trim], coarse: np.ndarray) -> list[list[tuple[int, int]]]:
    """Model -> trim -> the coarse bin of its threshold, and the rank inside that."""
    return [
        [find_rank(row, min(max(rank, 1), max(int(row.sum()), 1))) for rank in ranks]
        for row, ranks in zip(coarse, _ranks(trims, coarse), strict=True)
    ]


def fine_bins(trims: Sequence[Trim], coarse: np.ndarray) -> list[list[int]]:
    """Model -> trim -> the coarse bin inside which its threshold lies."""
    return [[chosen for chosen, _ in row] for row in _places(trims, coarse)]


def thresholds_from_counts(
    trims: Sequence[Trim], coarse: np.ndarray, fine: np.ndarray
) -> list[tuple[float, ...]]:
    """What `select_thresholds` gives, from coarse (T, 2**15) and fine (T, K, 2**16) counts."""
    ranks, places = _ranks(trims, coarse), _places(trims, coarse)

    def threshold(model: int, k: int) -> float:
        if ranks[model][k] == 0:
            return 0.0
        if ranks[model][k] > int(coarse[model].sum()):
            return math.inf
        chosen, rank = places[model][k]
        return bits_to_float(chosen << FINE_BITS | find_rank(fine[model, k], rank)[0])

    return [tuple(threshold(model, k) for model in range(len(coarse))) for k in range(len(trims))]


def tensor_thresholds(
    tensors: Sequence[AlignedTensor], trims: Mapping[str, Sequence[Trim]], workers: int = 1
) -> dict[str, list[tuple[float, ...]]]:
    """Tensor's name -> what `select_thresholds` gives for that tensor alone and its trims."""
    merged = [tensor for tensor in tensors if tensor.is_merged]
    sized = [tensor for tensor in merged if tensor.reference.num_elements]
    found = {t.name: [(0.0,) * len(t.finetuned)] * len(trims[t.name]) for t in merged}
    coarse: dict[str, np.ndarray] = {}
    bins: dict[str, list[list[int]] | None] = {}
    for tensor, counts in _count_tensors(sized, {t.name: None for t in sized}, workers):
        bins[tensor.name] = fine_bins(trims[tensor.name], counts)
        coarse[tensor.name] = counts
    for tensor, counts in _count_tensors(sized, bins, workers):
        trimmed = trims[tensor.name]
        found[tensor.name] = thresholds_from_counts(trimmed, coarse.pop(tensor.name), counts)
    return found
