"""Magnitude thresholds: which task-vector elements are large enough to be kept.

All is counted, and counts are integers, so the result does not depend on how the work was shared
out, nor on any sort.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import NamedTuple, TypeVar

import numpy as np

from nan_merge.blocks import Chunk, cut
from nan_merge.layout import AlignedTensor
from nan_merge.methods.method import Dialect
from nan_merge.methods.ties import kept_rank
from nan_merge.raw_runs import kernel_scratch, raw_runs, run_raw

Reduced = TypeVar("Reduced")


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
    chunks = cut([tensor for tensor in tensors if tensor.is_merged])
    found = _count(chunks, lambda _: "*", lambda _: bins, lambda _, total: total, workers)
    return found["*"]


def _count(
    chunks: Sequence[Chunk],
    key_of: Callable[[Chunk], str],
    bins_of: Callable[[Chunk], list[list[int]] | None],
    reduce: Callable[[str, np.ndarray], Reduced],
    workers: int,
) -> dict[str, Reduced]:
    """Key -> what ``reduce`` makes of the sum over its chunks.

    Histograms are large and chunks are many, so they are added up as they come, in any order; only
    those of keys that are not complete are kept.
    """
    left = Counter(map(key_of, chunks))
    totals: dict[str, np.ndarray] = {}
    found: dict[str, Reduced] = {}
    lock = Lock()

    def add(chunk: Chunk) -> None:
        key, counts = key_of(chunk), _count_chunk(chunk, bins_of(chunk))
        with lock:
            if (total := totals.setdefault(key, counts)) is not counts:
                total += counts
            left[key] -= 1
            if left[key]:
                return
            del totals[key]
        found[key] = reduce(key, total)

    for _ in run_raw(add, chunks, workers):
        pass
    return found


def _count_chunk(chunk: Chunk, bins: list[list[int]] | None) -> np.ndarray:
    from nan_merge.kernels.magnitudes import COARSE_BITS, FINE_BITS, count_coarse, count_fine

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
    places = find_places(trims, count(None))
    return thresholds_from_places(places, count(bins_of_places(places)))


class Place(NamedTuple):
    """Where a threshold lies: a coarse bin, and a rank (from 1) among the elements in it.

    A ``fixed`` one is known without looking there: 0 if all is kept, infinity if nothing is.
    """

    coarse_bin: int
    rank: int
    fixed: float | None


Places = list[list[Place]]  # of T models, of K trims


def find_places(trims: Sequence[Trim], coarse: np.ndarray) -> Places:
    """Model -> trim -> the place of its threshold, from coarse counts (T, 2**15)."""
    return [
        [
            _find_place(row, kept_rank(dialect, shares[model], int(row.sum())))
            for dialect, shares in trims
        ]
        for model, row in enumerate(coarse)
    ]


def _find_place(histogram: np.ndarray, rank: int) -> Place:
    total = int(histogram.sum())
    fixed = 0.0 if rank == 0 else math.inf if rank > total else None
    return Place(*find_rank(histogram, min(max(rank, 1), max(total, 1))), fixed)


def bins_of_places(places: Places) -> list[list[int]]:
    """Model -> trim -> the coarse bin inside which its threshold lies."""
    return [[place.coarse_bin for place in row] for row in places]


def thresholds_from_places(places: Places, fine: np.ndarray) -> list[tuple[float, ...]]:
    """What `select_thresholds` gives, from fine counts (T, K, 2**16)."""

    def threshold(place: Place, histogram: np.ndarray) -> float:
        if place.fixed is not None:
            return place.fixed
        inside = find_rank(histogram, place.rank)[0]
        return bits_to_float(place.coarse_bin * len(histogram) + inside)

    by_model = [list(map(threshold, row, counts)) for row, counts in zip(places, fine, strict=True)]
    return list(zip(*by_model, strict=True))


def tensor_thresholds(
    tensors: Sequence[AlignedTensor], trims: Mapping[str, Sequence[Trim]], workers: int = 1
) -> dict[str, list[tuple[float, ...]]]:
    """Tensor's name -> what `select_thresholds` gives for that tensor alone and its trims."""
    merged = [tensor for tensor in tensors if tensor.is_merged]
    chunks = cut([tensor for tensor in merged if tensor.reference.num_elements])
    places = _count(
        chunks,
        lambda chunk: chunk.tensor.name,
        lambda _: None,
        lambda name, counts: find_places(trims[name], counts),
        workers,
    )
    found = _count(
        chunks,
        lambda chunk: chunk.tensor.name,
        lambda chunk: bins_of_places(places[chunk.tensor.name]),
        lambda name, counts: thresholds_from_places(places[name], counts),
        workers,
    )
    # An empty tensor has nothing to trim.
    return {
        tensor.name: found.get(
            tensor.name, [(0.0,) * len(tensor.finetuned)] * len(trims[tensor.name])
        )
        for tensor in merged
    }
