"""Sums of inner products over tensors, exact up to one rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nan_merge.methods.method import TensorNorms

Matrix = tuple[tuple[float, ...], ...]


def sum_norms(norms: Sequence[TensorNorms]) -> TensorNorms:
    """Inner products over several tensors, as of one tensor that holds them all."""
    return TensorNorms(
        add_matrices([each.weights for each in norms]),
        add_matrices([each.task_vectors for each in norms]),
        _add_rows([each.weight_sums for each in norms]),
        _add_rows([each.task_vector_sums for each in norms]),
    )


def add_matrices(matrices: Sequence[Matrix]) -> Matrix:
    """Element by element `math.fsum`, which does not depend on the order."""
    return tuple(
        tuple(math.fsum(values) for values in zip(*rows, strict=True))
        for rows in zip(*matrices, strict=True)
    )


def _add_rows(rows: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(math.fsum(values) for values in zip(*rows, strict=True))
