"""What several kernels do with a block: read it, trim it, let its models vote.

These are the compiled forms of functions of `nan_merge.methods`, which say what they compute and
why; the operations and their order are the same. A run is ``raw``: one row of stored bytes per
input, the base first if there is one. ``scratch`` holds float32 rows: the base, the models, then
rows to work in.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nan_merge.kernels.compiled import part
from nan_merge.kernels.convert import widen

SCRATCH_ROWS = 4  # beside one for the base and one per model: votes or draws, update, divisor


@part
def read_weights(raw: Any, codes: Any, has_base: Any, first: Any, count: Any, scratch: Any) -> None:
    """Models' weights in the rows after row 0."""
    for model in range(raw.shape[0] - has_base):
        row = has_base + model
        widen(raw[row], codes[row], first, count, scratch[1 + model])


@part
def read_vectors(raw: Any, codes: Any, first: Any, count: Any, scratch: Any) -> None:
    """The base in row 0 and task vectors in the rows after it."""
    base = scratch[0]
    widen(raw[0], codes[0], first, count, base)
    for model in range(raw.shape[0] - 1):
        vector = scratch[1 + model]
        widen(raw[1 + model], codes[1 + model], first, count, vector)
        for place in range(count):
            vector[place] -= base[place]


@part
def trim(vector: Any, count: Any, threshold: Any) -> None:
    """Set to zero what is smaller than the threshold; NaN stays, to be found later."""
    for place in range(count):
        value = vector[place]
        vector[place] = np.float32(0.0) if abs(value) < threshold else value


@part
def drop(vector: Any, count: Any, density: Any, draws: Any) -> None:
    """Multiply by 1 what is kept and by 0 what is not."""
    for place in range(count):
        kept = np.float32(1.0) if draws[place] < density else np.float32(0.0)
        vector[place] *= kept


@part
def vote(
    scratch: Any,
    num_models: Any,
    count: Any,
    coefficients: Any,
    weigh_first: Any,
    by_sign: Any,
    votes: Any,
) -> None:
    """The sum over the models whose sign is elected."""
    votes[:count] = np.float32(0.0)
    for model in range(num_models):
        vector = scratch[1 + model]
        weight = coefficients[model] if weigh_first else np.float32(1.0)
        for place in range(count):
            ballot = vector[place] * weight
            votes[place] += np.sign(ballot) if by_sign else ballot
