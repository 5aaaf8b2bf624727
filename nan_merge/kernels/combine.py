"""One run of all inputs to one run of the result, for methods that take any elements.

These are the compiled forms of `weighted_sum`, of `trim` and `drop`, and of `join`
(nan_merge/methods), which say what they compute and why; the operations and their order are the
same. A run is ``raw``: one row of stored bytes per input, the base first if there is one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nan_merge.kernels.compiled import compiled
from nan_merge.kernels.convert import BLOCK, narrow, widen
from nan_merge.kernels.philox import draw

SUM, MEAN, WEIGHTED_MEAN = 0, 1, 2  # how agreeing elements are joined
PLAIN_SUM = -1  # no vote: the weighted sum of all
DIVIDE, MULTIPLY = 1, 2  # how kept elements are rescaled
SCRATCH_ROWS = 5  # beside one per input: votes, update, divisor, draws, result


@compiled("void(uint8[:,::1], int64[::1], int64, int64, int64, float32[:,::1])")
def read_vectors(raw: Any, codes: Any, has_base: Any, first: Any, count: Any, scratch: Any) -> None:
    """The base in row 0 and task vectors in the rows after it; without a base, the weights."""
    num_models = raw.shape[0] - has_base
    if has_base:
        widen(raw[0], codes[0], first, count, scratch[0])
    base = scratch[0]
    for model in range(num_models):
        vector = scratch[1 + model]
        widen(raw[has_base + model], codes[has_base + model], first, count, vector)
        if has_base:
            for place in range(count):
                vector[place] -= base[place]


@compiled("void(float32[::1], int64, float32)")
def trim(vector: Any, count: Any, threshold: Any) -> None:
    """Set to zero what is smaller than the threshold; NaN stays, to be found later."""
    for place in range(count):
        value = vector[place]
        vector[place] = np.float32(0.0) if abs(value) < threshold else value


@compiled("void(float32[::1], int64, float32, float32[::1])")
def drop(vector: Any, count: Any, density: Any, draws: Any) -> None:
    """Multiply by 1 what is kept and by 0 what is not."""
    for place in range(count):
        kept = np.float32(1.0) if draws[place] < density else np.float32(0.0)
        vector[place] *= kept


@compiled(
    "void(float32[:,::1], int64, int64, int64, float32[::1], float32[::1], uint64[:,::1],"
    " int64[::1], float32[::1])"
)
def sparsify(
    scratch: Any,
    num_models: Any,
    start: Any,
    count: Any,
    thresholds: Any,
    densities: Any,
    keys: Any,
    rescales: Any,
    factors: Any,
) -> None:
    """Trim each task vector, or drop some of it at random and rescale the rest."""
    draws = scratch[1 + num_models]
    for model in range(num_models):
        vector = scratch[1 + model]
        if thresholds[model] > 0:
            trim(vector, count, thresholds[model])
        if densities[model] < 1:
            draw(keys[model, 0], keys[model, 1], start, count, draws)
            drop(vector, count, densities[model], draws)
            factor = factors[model]
            if rescales[model] == DIVIDE:
                for place in range(count):
                    vector[place] /= factor
            elif rescales[model] == MULTIPLY:
                for place in range(count):
                    vector[place] *= factor


@compiled("void(float32[:,::1], int64, int64, float32[::1], boolean, boolean, float32[::1])")
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


@compiled("void(float32[::1], int64, float32)")
def elect(votes: Any, count: Any, tie: Any) -> None:
    """1 or -1 in place of each vote; ``tie`` in place of zero."""
    one = np.float32(1.0)
    for place in range(count):
        value = votes[place]
        votes[place] = one if value > 0 else (-one if value < 0 else tie)


@compiled(
    "void(float32[:,::1], int64, int64, float32[::1], boolean, boolean, float32, int64, float32)"
)
def join(
    scratch: Any,
    num_models: Any,
    count: Any,
    coefficients: Any,
    weigh_first: Any,
    by_sign: Any,
    tie: Any,
    how: Any,
    factor: Any,
) -> None:
    """What agrees with the elected sign, joined; into the row after the votes."""
    zero, one = np.float32(0.0), np.float32(1.0)
    elected, update = scratch[1 + num_models], scratch[2 + num_models]
    divisor = scratch[3 + num_models]
    vote(scratch, num_models, count, coefficients, weigh_first, by_sign, elected)
    elect(elected, count, tie)
    update[:count] = zero
    divisor[:count] = zero
    for model in range(num_models):
        vector, weight = scratch[1 + model], coefficients[model]
        before = weight if weigh_first else one
        after = one if weigh_first else weight
        counted = weight if how == WEIGHTED_MEAN else one
        for place in range(count):
            turned = (vector[place] * before) * elected[place]
            agreeing = zero if turned < zero else turned
            update[place] += agreeing * after
            divisor[place] += counted if agreeing > zero else zero
    for place in range(count):
        value = update[place]
        if how == MEAN:
            value /= max(divisor[place], one)
        elif how == WEIGHTED_MEAN:
            value /= divisor[place] if divisor[place] != zero else one
        update[place] = value * elected[place] * factor


@compiled("void(float32[:,::1], int64, int64, float32[::1])")
def add_up(scratch: Any, num_models: Any, count: Any, coefficients: Any) -> None:
    """The weighted sum, in the order given; into the row after the votes."""
    update = scratch[2 + num_models]
    for model in range(num_models):
        vector, weight = scratch[1 + model], coefficients[model]
        if model == 0:
            for place in range(count):
                update[place] = vector[place] * weight
        else:
            for place in range(count):
                update[place] += vector[place] * weight


@compiled(
    "boolean(uint8[:,::1], int64[::1], int64, int64, int64, float32[::1],"
    " float32[::1], float32[::1], uint64[:,::1], int64[::1], float32[::1],"
    " int64, boolean, boolean, float32, float32, float32[:,::1], int64, uint8[::1])"
)
def combine(
    raw: Any,
    codes: Any,
    has_base: Any,
    start: Any,
    count: Any,
    coefficients: Any,
    thresholds: Any,
    densities: Any,
    keys: Any,
    rescales: Any,
    factors: Any,
    how: Any,
    weigh_first: Any,
    by_sign: Any,
    tie: Any,
    factor: Any,
    scratch: Any,
    out_code: Any,
    out: Any,
) -> bool:
    """Merge one run; whether all of the result is finite."""
    num_models = raw.shape[0] - has_base
    finite = True
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        read_vectors(raw, codes, has_base, first, size, scratch)
        sparsify(
            scratch, num_models, start + first, size, thresholds, densities, keys, rescales, factors
        )
        if how == PLAIN_SUM:
            add_up(scratch, num_models, size, coefficients)
        else:
            join(scratch, num_models, size, coefficients, weigh_first, by_sign, tie, how, factor)
        update, base = scratch[2 + num_models], scratch[0]
        if has_base:
            for place in range(size):
                update[place] += base[place]
        finite &= narrow(update, size, out_code, first, out)
    return finite


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
        read_vectors(raw, codes, 1, first, size, scratch)
        for model in range(num_models):
            if thresholds[model] > 0:
                trim(scratch[1 + model], size, thresholds[model])
        votes = scratch[1 + num_models]
        vote(scratch, num_models, size, coefficients, weigh_first, by_sign, votes)
        for place in range(size):
            balance += (votes[place] > 0) - (votes[place] < 0)
    return balance
