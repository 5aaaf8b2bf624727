"""Numbers over whole models that must be known before a merge: norms, inner products, thresholds.

Every sum runs over a fixed grid of cells of each tensor and is then reduced with `math.fsum`,
which is exact up to one rounding, so the result does not depend on how the work was shared out.
Counts are integers and cannot depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nan_merge.errors import CheckpointError
from nan_merge.plan import AlignedTensor
from nan_merge.safetensors_file import BlockReader

# Elements of one cell of the grid. Part of the definition of every statistic: another number
# would change last bits of norms and so, now and then, of a merged weight.
CELL_ELEMENTS = 1 << 18
COARSE_BITS, FINE_BITS = 15, 16  # of the 31 bits of a float32 magnitude


@dataclass(frozen=True)
class TensorNorms:
    """Of one tensor, over T models.

    Attributes:
        weight_squares: Sum of squares of each fine-tuned model's weights, length T.
        gram: Inner products of the task vectors, T x T; their squared norms on the diagonal.
            Empty if there is no base.
    """

    weight_squares: tuple[float, ...]
    gram: tuple[tuple[float, ...], ...]


def read_cells(
    reader: BlockReader, tensor: AlignedTensor, cell_elements: int = CELL_ELEMENTS
) -> Iterator[tuple[Tensor | None, list[Tensor]]]:
    """Corresponding flat float32 pieces of the base (None if there is none) and of T models."""
    for start in range(0, tensor.reference.num_elements, cell_elements):
        count = min(cell_elements, tensor.reference.num_elements - start)
        base = reader.read(tensor.base, start, count).float() if tensor.base else None
        yield base, [reader.read(info, start, count).float() for info in tensor.finetuned]


def measure_norms(tensors: Sequence[AlignedTensor]) -> dict[str, TensorNorms]:
    """Norms and inner products of each tensor.

    Raises:
        CheckpointError: If a value is NaN or infinite; names the tensor and the file.
    """
    with BlockReader() as reader, one_thread():
        return {
            tensor.name: _tensor_norms(reader, tensor) for tensor in tensors if tensor.is_merged
        }


def _tensor_norms(reader: BlockReader, tensor: AlignedTensor) -> TensorNorms:
    num_models = len(tensor.finetuned)
    squares: list[list[float]] = [[] for _ in range(num_models)]
    products: list[list[float]] = [[] for _ in range(num_models * num_models)]
    for base, finetuned in read_cells(reader, tensor):
        weights = torch.stack(finetuned).double()  # (T, n)
        for model, square in enumerate(weights.square().sum(dim=1).tolist()):
            squares[model].append(square)
        if base is not None:
            # The task vector is a float32 difference here as in every method, then widened.
            vectors = torch.stack([piece - base for piece in finetuned]).double()
            for place, product in enumerate((vectors @ vectors.T).flatten().tolist()):
                products[place].append(product)
    totals = tuple(math.fsum(values) for values in squares)
    flat = [math.fsum(values) for values in products] if tensor.base else []
    _refuse_non_finite(reader, tensor, [*totals, *flat])
    gram = tuple(
        tuple(flat[row * num_models : (row + 1) * num_models]) for row in range(num_models)
    )
    return TensorNorms(totals, gram if tensor.base else ())


def _refuse_non_finite(reader: BlockReader, tensor: AlignedTensor, sums: list[float]) -> None:
    """Sums of squares of finite float32 numbers fit into float64: anything else was in the file."""
    if all(map(math.isfinite, sums)):
        return
    for info in tensor.inputs:
        for start in range(0, info.num_elements, CELL_ELEMENTS):
            count = min(CELL_ELEMENTS, info.num_elements - start)
            finite = reader.read(info, start, count).float().isfinite()
            if not finite.all():
                place = start + int((~finite).nonzero()[0])
                raise CheckpointError(
                    f"{info.path}: tensor {info.name} holds NaN or infinity (first at element "
                    f"{place:,} of {info.num_elements:,}). A merge would spread it; repair or "
                    "leave out this model."
                )
    raise CheckpointError(
        f"Tensor {tensor.name}: the difference to the base is too large to measure."
    )


def sum_norms(norms: Sequence[TensorNorms]) -> TensorNorms:
    """Exact sum of several tensors' norms, as of one tensor that holds them all."""
    num_models = len(norms[0].weight_squares)
    rows = range(num_models if norms[0].gram else 0)
    return TensorNorms(
        tuple(math.fsum(norm.weight_squares[i] for norm in norms) for i in range(num_models)),
        tuple(tuple(math.fsum(norm.gram[i][j] for norm in norms) for j in rows) for i in rows),
    )


def magnitude_bits(vector: Tensor) -> np.ndarray:
    """The 31 bits of each |element| as an integer; they are ordered as the magnitudes are."""
    return vector.abs().contiguous().view(torch.int32).numpy()


def coarse_histograms(tensors: Sequence[AlignedTensor]) -> np.ndarray:
    """Task-vector magnitudes by their 15 leading bits: int64 counts, shape (T, 2**15)."""
    return _histograms(tensors, lambda bits, _: [bits >> FINE_BITS], 1 << COARSE_BITS, 1)[:, 0]


def fine_histograms(tensors: Sequence[AlignedTensor], bins: Sequence[Sequence[int]]) -> np.ndarray:
    """Inside chosen coarse bins, magnitudes by their 16 other bits.

    Args:
        tensors: What to count.
        bins: For each of T models, K coarse bins.

    Returns:
        int64 counts, shape (T, K, 2**16).
    """
    mask = (1 << FINE_BITS) - 1

    def select(bits: np.ndarray, model: int) -> list[np.ndarray]:
        return [bits[bits >> FINE_BITS == chosen] & mask for chosen in bins[model]]

    return _histograms(tensors, select, 1 << FINE_BITS, len(bins[0]))


def _histograms(
    tensors: Sequence[AlignedTensor],
    select: Callable[[np.ndarray, int], list[np.ndarray]],
    num_bins: int,
    num_selections: int,
) -> np.ndarray:
    num_models = len(tensors[0].finetuned)
    counts = np.zeros((num_models, num_selections, num_bins), dtype=np.int64)
    with BlockReader() as reader, one_thread():
        for tensor in tensors:
            for base, finetuned in read_cells(reader, tensor) if tensor.is_merged else ():
                assert base is not None, "thresholds are of task vectors, which need a base"
                for model, piece in enumerate(finetuned):
                    for place, values in enumerate(select(magnitude_bits(piece - base), model)):
                        counts[model, place] += np.bincount(values, minlength=num_bins)
    return counts


def find_rank(histogram: np.ndarray, rank: int) -> tuple[int, int]:
    """The bin that holds the ``rank``-th smallest value (from 1), and its rank inside that bin."""
    cumulative = np.cumsum(histogram)
    chosen = int(np.searchsorted(cumulative, rank))
    return chosen, rank - int(cumulative[chosen - 1] if chosen else 0)


def bits_to_float(bits: int) -> float:
    """The float32 number with these bits."""
    return float(np.array(bits, dtype=np.uint32).view(np.float32))


@contextmanager
def one_thread() -> Generator[None]:
    """Let torch compute on one thread, so that every sum is split in one way only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
