"""Numbers that must be known before a merge: inner products, magnitude thresholds.

Every sum runs over a fixed grid of blocks and chunks and is reduced with `math.fsum`, which is
exact up to one rounding, so the result does not depend on how the work was shared out. Counts are
integers and cannot depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from nan_merge.blocks import Chunk, cut, run_chunks
from nan_merge.errors import CheckpointError
from nan_merge.kernels import FINE_BITS, counting_kernels
from nan_merge.methods.method import Dialect, TensorNorms
from nan_merge.methods.ties import kept_rank
from nan_merge.norms import Matrix, sum_norms
from nan_merge.plan import AlignedTensor

COARSE_BITS = 15  # with FINE_BITS the 31 bits of a float32 magnitude


def measure_norms(tensors: Sequence[AlignedTensor], workers: int = 1) -> dict[str, TensorNorms]:
    """Inner products of weights and of task vectors, tensor by tensor.

    Raises:
        CheckpointError: If a value is NaN or infinite; names the tensor and the file.
    """
    merged = [tensor for tensor in tensors if tensor.is_merged]
    chunks = cut(merged)
    parts: dict[str, list[TensorNorms]] = {tensor.name: [] for tensor in merged}
    for chunk, norms in zip(chunks, run_chunks(_chunk_norms, chunks, workers), strict=True):
        parts[chunk.tensor.name].append(norms)
    sums = {name: sum_norms(of_chunks) for name, of_chunks in parts.items()}
    return {tensor.name: _refuse_non_finite(tensor, sums[tensor.name]) for tensor in merged}


def _chunk_norms(chunk: Chunk) -> TensorNorms:
    num_models = len(chunk.tensor.finetuned)
    rows = torch.empty(num_models, chunk.block_elements, dtype=torch.float64)
    grams: list[list[Tensor]] = [[], []]
    for base, finetuned in (block for run in chunk.runs() for block in run.read_blocks()):
        block = rows[:, : len(finetuned[0])]
        for row, piece in zip(block, finetuned, strict=True):
            row.copy_(piece)
        grams[0].append(block @ block.T)
        if base is not None:
            # The task vector is a float32 difference here as in every method, then widened.
            for row, piece in zip(block, finetuned, strict=True):
                row.copy_(piece.sub_(base))
            grams[1].append(block @ block.T)
    weights, task_vectors = (_reduce(parts, num_models) for parts in grams)
    return TensorNorms(weights, task_vectors if chunk.tensor.base else ())


def _reduce(parts: Sequence[Tensor], num_models: int) -> Matrix:
    if not parts:
        return ((0.0,) * num_models,) * num_models
    columns = torch.stack(list(parts)).flatten(1).T.tolist()
    sums = [math.fsum(column) for column in columns]
    return tuple(tuple(sums[i * num_models : (i + 1) * num_models]) for i in range(num_models))


def _refuse_non_finite(tensor: AlignedTensor, norms: TensorNorms) -> TensorNorms:
    """Sums of squares of finite float32 numbers fit into float64: anything else was in the file."""
    rows = [*norms.weights, *norms.task_vectors]
    values = [value for row in rows for value in row]
    if all(map(math.isfinite, values)):
        return norms
    for found in run_chunks(_find_non_finite, cut([tensor]), 1):
        if found:
            path, place = found
            raise CheckpointError(
                f"{path}: tensor {tensor.name} holds NaN or infinity (first at element {place:,} "
                f"of {tensor.reference.num_elements:,}). A merge would spread it; repair or leave "
                "out this model."
            )
    raise CheckpointError(f"Tensor {tensor.name}: the models differ by more than float32 can hold.")


def _find_non_finite(chunk: Chunk) -> tuple[str, int] | None:
    for run in chunk.runs():
        for info, piece in zip(chunk.tensor.inputs, run.read(), strict=True):
            finite = piece.isfinite()
            if not finite.all():
                return info.path, run.start + int((~finite).nonzero()[0])
    return None


Count = Callable[[np.ndarray, int, np.ndarray], None]


def count_magnitudes(
    tensors: Sequence[AlignedTensor], bins: list[list[int]] | None = None, workers: int = 1
) -> np.ndarray:
    """Histograms of task-vector magnitudes over the bits of their float32 numbers.

    Args:
        tensors: What to count; at least one.
        bins: None to count by the 15 leading bits; or, for each of T models, K values of those,
            inside which the 16 other bits are counted.
        workers: Processes to count on.

    Returns:
        int64 counts, shape (T, 2**15) or (T, K, 2**16).
    """
    count, shape = _counter(len(tensors[0].finetuned), bins)
    total = np.zeros(shape, dtype=np.int64)

    def count_chunk(chunk: Chunk) -> np.ndarray:
        counts = np.zeros(shape, dtype=np.int64)
        _count_blocks(chunk, count, counts)
        return counts

    chunks = cut([tensor for tensor in tensors if tensor.is_merged])
    for counts in run_chunks(count_chunk, chunks, workers):
        total += counts
    return total


def _counter(num_models: int, bins: list[list[int]] | None) -> tuple[Count, tuple[int, ...]]:
    """A function that adds the bits of one model's block to counts, and the counts' shape."""
    count_coarse, count_fine = counting_kernels()
    if bins is None:
        return (
            lambda bits, model, counts: count_coarse(bits, counts[model]),
            (num_models, 1 << COARSE_BITS),
        )

    def count(bits: np.ndarray, model: int, counts: np.ndarray) -> None:
        for place, chosen in enumerate(bins[model]):
            count_fine(bits, chosen, counts[model, place])

    return count, (num_models, len(bins[0]), 1 << FINE_BITS)


def _count_blocks(chunk: Chunk, count: Count, counts: np.ndarray) -> None:
    for base, finetuned in (block for run in chunk.runs() for block in run.read_blocks()):
        assert base is not None, "thresholds are of task vectors, which need a base"
        for model, piece in enumerate(finetuned):
            count(magnitude_bits(piece.sub_(base)), model, counts)


def magnitude_bits(vector: Tensor) -> np.ndarray:
    """The 31 bits of each |element|: int32, ordered as the magnitudes are. Changes ``vector``."""
    return vector.abs_().view(torch.int32).numpy()


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
    ranks = [
        [kept_rank(dialect, densities[model], int(row.sum())) for dialect, densities in trims]
        for model, row in enumerate(coarse)
    ]
    places = [
        [find_rank(row, min(max(rank, 1), max(int(row.sum()), 1))) for rank in ranks[model]]
        for model, row in enumerate(coarse)
    ]
    fine = count([[chosen for chosen, _ in row] for row in places])

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

    def select(tensor: AlignedTensor) -> list[tuple[float, ...]]:
        if tensor.reference.num_elements == 0:
            return [(0.0,) * len(tensor.finetuned)] * len(trims[tensor.name])
        return select_thresholds(trims[tensor.name], lambda bins: count_tensor(tensor, bins))

    merged = [tensor for tensor in tensors if tensor.is_merged]
    found = run_chunks(select, merged, workers)
    return {tensor.name: row for tensor, row in zip(merged, found, strict=True)}


def count_tensor(tensor: AlignedTensor, bins: list[list[int]] | None) -> np.ndarray:
    """The coarse histograms of one tensor, or the fine ones of chosen bins, in this process."""
    count, shape = _counter(len(tensor.finetuned), bins)
    counts = np.zeros(shape, dtype=np.int64)
    for chunk in cut([tensor]):
        _count_blocks(chunk, count, counts)
    return counts
