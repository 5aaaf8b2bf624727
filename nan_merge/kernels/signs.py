"""One run of all inputs to the balance of its elected signs."""

from __future__ import annotations

from typing import Any

from nan_merge.kernels.compiled import compiled
from nan_merge.kernels.convert import BLOCK
from nan_merge.kernels.vectors import read_vectors, trim, vote


@compiled(
    "int64(uint8[:,::1], int64[::1], int64, float32[::1], float32[::1], boolean, boolean,"
    " float32[:,::1])"
)
def count_elected(
    raw: Any,
    codes: Any,
    count: Any,
    coefficients: Any,
    thresholds: Any,
    weigh_first: Any,
    by_sign: Any,
    scratch: Any,
) -> int:
    """Elected plus signs minus elected minus signs of one run, after trimming."""
    num_models = raw.shape[0] - 1
    balance = 0
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        read_vectors(raw, codes, first, size, scratch)
        for model in range(num_models):
            if thresholds[model] > 0:
                trim(scratch[1 + model], size, thresholds[model])
        votes = scratch[1 + num_models]
        vote(scratch, num_models, size, coefficients, weigh_first, by_sign, votes)
        for place in range(size):
            balance += (votes[place] > 0) - (votes[place] < 0)
    return balance
