"""One run of all inputs to one run of the result, for methods that take any elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from nan_merge.kernels.compiled import compiled, part
from nan_merge.kernels.convert import BLOCK, narrow
from nan_merge.kernels.philox import draw
from nan_merge.kernels.vectors import drop, read_vectors, trim, vote

SUM, MEAN, WEIGHTED_MEAN = 0, 1, 2  # how agreeing elements are joined
PLAIN_SUM = -1  # no vote: the weighted sum of all
DIVIDE, MULTIPLY = 1, 2  # how kept elements are rescaled


@part
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


@part
def elect(votes: Any, count: Any, tie: Any) -> None:
    """1 or -1 in place of each vote; ``tie`` in place of zero."""
    one = np.float32(1.0)
    for place in range(count):
        value = votes[place]
        votes[place] = one if value > 0 else (-one if value < 0 else tie)


@part
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


@part
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
