"""Inner products and sums of weights and task vectors, tensor by tensor.

Within a chunk of the fixed grid the compiled kernel adds up in float64 in a fixed order; chunks
and tensors are added with `math.fsum`, which is exact up to one rounding. So the result does not
depend on how the work was shared out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nan_merge.blocks import Chunk, cut
from nan_merge.dtypes import finite
from nan_merge.errors import CheckpointError
from nan_merge.layout import AlignedTensor
from nan_merge.lora_tensor import lora_inner_products
from nan_merge.methods.method import TensorNorms
from nan_merge.norms import Matrix, sum_norms
from nan_merge.raw_runs import kernel_scratch, raw_runs, run_raw
from nan_merge.safetensors_file import BlockReader


@dataclass(frozen=True)
class WantedProducts:
    """What is measured.

    Attributes:
        weights: Of the fine-tuned weights.
        task_vectors: Of fine-tuned minus base, where there is a base.
        all_pairs: Of all pairs of models; otherwise of each with itself.
    """

    weights: bool = True
    task_vectors: bool = True
    all_pairs: bool = True

    def __or__(self, other: WantedProducts) -> WantedProducts:
        """What one or the other wants."""
        return WantedProducts(
            self.weights or other.weights,
            self.task_vectors or other.task_vectors,
            self.all_pairs or other.all_pairs,
        )


ALL_PRODUCTS = WantedProducts()
NO_PRODUCTS = WantedProducts(weights=False, task_vectors=False, all_pairs=False)


def measure_norms(
    tensors: Sequence[AlignedTensor], wanted: WantedProducts = ALL_PRODUCTS, workers: int = 1
) -> dict[str, TensorNorms]:
    """Inner products and sums of each tensor; task vectors of adapters without forming any B·A.

    Raises:
        CheckpointError: If a value is NaN or infinite; names the tensor and the file.
    """
    merged = [tensor for tensor in tensors if tensor.is_merged]
    known = _of_adapters(merged) if wanted.task_vectors else {}
    read = [tensor for tensor in merged if wanted.weights or tensor.name not in known]
    parts: dict[str, list[TensorNorms]] = {tensor.name: [] for tensor in read}

    def measure_chunk(chunk: Chunk) -> TensorNorms:
        reads_vectors = wanted.task_vectors and chunk.tensor.name not in known
        return _measure_chunk(chunk, wanted, reads_vectors and chunk.tensor.base is not None)

    chunks = cut(read)
    for chunk, norms in zip(chunks, run_raw(measure_chunk, chunks, workers), strict=True):
        parts[chunk.tensor.name].append(norms)
    found = {tensor.name: _refuse_non_finite(tensor, parts[tensor.name]) for tensor in read}
    for name, vectors in known.items():
        own = found.get(name, TensorNorms((), ()))
        found[name] = TensorNorms(
            own.weights, vectors.task_vectors, own.weight_sums, vectors.task_vector_sums
        )
    return {tensor.name: found[tensor.name] for tensor in merged}


def _of_adapters(tensors: Sequence[AlignedTensor]) -> dict[str, TensorNorms]:
    """Of the tensors that are nothing but adapters on the base: what their factors say."""
    found: dict[str, TensorNorms] = {}
    with BlockReader() as reader:
        for tensor in tensors:
            if tensor.base is not None:
                products = lora_inner_products(reader, tensor.base, tensor.finetuned)
                if products is not None:
                    found[tensor.name] = products
    return found


def _measure_chunk(chunk: Chunk, wanted: WantedProducts, reads_vectors: bool) -> TensorNorms:
    from nan_merge.kernels.inner_products import add_inner_products
    from nan_merge.kernels.lanes import LANES

    num_models = len(chunk.tensor.finetuned)
    lanes = np.zeros((2, num_models, num_models + 1, LANES))
    has_base = int(chunk.tensor.base is not None)
    for run in raw_runs(chunk):
        add_inner_products(
            run.rows,
            run.codes,
            has_base,
            run.count,
            wanted.weights,
            reads_vectors,
            wanted.all_pairs,
            kernel_scratch(chunk),
            lanes,
        )
    weights, weight_sums = _reduce(lanes[0], wanted.all_pairs) if wanted.weights else ((), ())
    vectors, vector_sums = _reduce(lanes[1], wanted.all_pairs) if reads_vectors else ((), ())
    return TensorNorms(weights, vectors, weight_sums, vector_sums)


def _reduce(lanes: np.ndarray, all_pairs: bool) -> tuple[Matrix, tuple[float, ...]]:
    num_models = len(lanes)

    def add(part: np.ndarray) -> float:
        return math.fsum(part) if np.isfinite(part).all() else math.nan

    def product(i: int, j: int) -> float:
        return add(lanes[max(i, j), min(i, j)]) if all_pairs or i == j else math.nan

    places = range(num_models)
    products = tuple(tuple(product(i, j) for j in places) for i in places)
    return products, tuple(add(lanes[i, num_models]) for i in places)


def _refuse_non_finite(tensor: AlignedTensor, parts: Sequence[TensorNorms]) -> TensorNorms:
    """Sums of squares of finite float32 numbers fit into float64: anything else was in the file."""
    norms = sum_norms(parts)
    squares = [row[i] for rows in (norms.weights, norms.task_vectors) for i, row in enumerate(rows)]
    if all(map(math.isfinite, squares)):
        return norms
    for chunk in cut([tensor]):
        for found in run_raw(_find_non_finite, [chunk], 1):
            if found:
                path, place = found
                raise CheckpointError(
                    f"{path}: tensor {tensor.name} holds NaN or infinity (first at element "
                    f"{place:,} of {tensor.reference.num_elements:,}). A merge would spread it; "
                    "repair or leave out this model."
                )
    raise CheckpointError(f"Tensor {tensor.name}: the models differ by more than float32 can hold.")


def _find_non_finite(chunk: Chunk) -> tuple[str, int] | None:
    for run in raw_runs(chunk):
        for info, data in zip(chunk.tensor.inputs, run.stored, strict=True):
            is_finite = finite(data, info.dtype)
            if not is_finite.all():
                return info.path, run.start + int(np.flatnonzero(~is_finite)[0])
    return None
