"""One run of all inputs to inner products of weights and of task vectors."""

from __future__ import annotations

from typing import Any

from nan_merge.kernels.compiled import compiled, part
from nan_merge.kernels.convert import BLOCK
from nan_merge.kernels.lanes import add_products, add_values
from nan_merge.kernels.vectors import read_vectors, read_weights


@part
def add_gram(scratch: Any, num_models: Any, count: Any, all_pairs: Any, lanes: Any) -> None:
    """Add inner products to lanes (T, T + 1, LANES): of pairs j <= i, and of each with 1."""
    for i in range(num_models):
        for j in range(0 if all_pairs else i, i + 1):
            add_products(scratch[1 + i], scratch[1 + j], count, lanes[i, j])
        add_values(scratch[1 + i], count, lanes[i, num_models])


@compiled(
    "void(uint8[:,::1], int64[::1], int64, int64, boolean, boolean, boolean, float32[:,::1],"
    " float64[:,:,:,::1])"
)
def add_inner_products(
    raw: Any,
    codes: Any,
    has_base: Any,
    count: Any,
    of_weights: Any,
    of_vectors: Any,
    all_pairs: Any,
    scratch: Any,
    lanes: Any,
) -> None:
    """Add inner products of weights to ``lanes[0]`` and of task vectors to ``lanes[1]``."""
    num_models = raw.shape[0] - has_base
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        if of_weights:
            read_weights(raw, codes, has_base, first, size, scratch)
            add_gram(scratch, num_models, size, all_pairs, lanes[0])
        if of_vectors:
            read_vectors(raw, codes, first, size, scratch)
            add_gram(scratch, num_models, size, all_pairs, lanes[1])
