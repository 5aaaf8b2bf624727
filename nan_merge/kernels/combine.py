"""One run of all inputs to one run of each of several results, for methods that take any elements.

Everything about one result is a row of these arrays, for T models:
    numbers: float32 (results, 4, T): coefficients, thresholds, densities, factors.
    keys: uint64 (results, T, 2), as `philox.draw` takes them.
    switches: int64 (results, 6): whether models are task vectors, how they are joined, whether
        coefficients weigh the vote, whether signs are added up in it, how kept elements are
        rescaled, the type of the result.
    signs: float32 (results, 2): the sign that wins ties, and a factor on the joined update.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nan_merge.kernels.compiled import compiled, part
from nan_merge.kernels.convert import BLOCK, narrow
from nan_merge.kernels.philox import draw
from nan_merge.kernels.vectors import drop, read_vectors, read_weights, trim, vote

COEFFICIENTS, THRESHOLDS, DENSITIES, FACTORS = 0, 1, 2, 3  # rows of numbers
OF_VECTORS, HOW, WEIGH_FIRST, BY_SIGN, RESCALING, OUT_CODE = 0, 1, 2, 3, 4, 5  # switches
TIE, FACTOR = 0, 1  # signs
SUM, MEAN, WEIGHTED_MEAN = 0, 1, 2  # how agreeing elements are joined
PLAIN_SUM = -1  # no vote: the weighted sum of all
DIVIDE, MULTIPLY = 1, 2  # how kept elements are rescaled
NOTHING = -1  # in place of a switch OF_VECTORS: nothing is read, or it was changed since


@part
def sparsify(scratch: Any, start: Any, count: Any, numbers: Any, keys: Any, rescaling: Any) -> bool:
    """Trim each task vector, or drop some of it at random and rescale the rest.

    Returns:
        Whether anything was done.
    """
    num_models = numbers.shape[1]
    draws = scratch[1 + num_models]
    changed = False
    for model in range(num_models):
        vector, factor = scratch[1 + model], numbers[FACTORS, model]
        if numbers[THRESHOLDS, model] > 0:
            trim(vector, count, numbers[THRESHOLDS, model])
            changed = True
        if numbers[DENSITIES, model] < 1:
            draw(keys[model, 0], keys[model, 1], start, count, draws)
            drop(vector, count, numbers[DENSITIES, model], draws)
            changed = True
            if rescaling == DIVIDE:
                for place in range(count):
                    vector[place] /= factor
            elif rescaling == MULTIPLY:
                for place in range(count):
                    vector[place] *= factor
    return changed


@part
def elect(votes: Any, count: Any, tie: Any) -> None:
    """1 or -1 in place of each vote; ``tie`` in place of zero."""
    one = np.float32(1.0)
    for place in range(count):
        value = votes[place]
        votes[place] = one if value > 0 else (-one if value < 0 else tie)


@part
def join(scratch: Any, count: Any, coefficients: Any, switches: Any, signs: Any) -> None:
    """What agrees with the elected sign, joined; into the row after the votes."""
    zero, one = np.float32(0.0), np.float32(1.0)
    num_models = len(coefficients)
    weigh_first, how = switches[WEIGH_FIRST] != 0, switches[HOW]
    elected, update = scratch[1 + num_models], scratch[2 + num_models]
    divisor = scratch[3 + num_models]
    vote(scratch, num_models, count, coefficients, weigh_first, switches[BY_SIGN] != 0, elected)
    elect(elected, count, signs[TIE])
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
    factor = signs[FACTOR]
    for place in range(count):
        value = update[place]
        if how == MEAN:
            value /= max(divisor[place], one)
        elif how == WEIGHTED_MEAN:
            value /= divisor[place] if divisor[place] != zero else one
        update[place] = value * elected[place] * factor


@part
def add_up(scratch: Any, count: Any, coefficients: Any) -> None:
    """The weighted sum, in the order given; into the row after the votes."""
    num_models = len(coefficients)
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
    "void(uint8[:,::1], int64[::1], int64, int64, int64, float32[:,:,::1], uint64[:,:,::1],"
    " int64[:,::1], float32[:,::1], float32[:,::1], uint8[:,::1], uint8[::1])"
)
def combine(
    raw: Any,
    codes: Any,
    has_base: Any,
    start: Any,
    count: Any,
    numbers: Any,
    keys: Any,
    switches: Any,
    signs: Any,
    scratch: Any,
    out: Any,
    finite: Any,
) -> None:
    """Merge one run into every result, and say of each whether all of it is finite."""
    num_models = raw.shape[0] - has_base
    update = scratch[2 + num_models]
    finite[:] = 1
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        there = NOTHING
        for result in range(len(numbers)):
            coefficients, switch = numbers[result, COEFFICIENTS], switches[result]
            if there != switch[OF_VECTORS]:
                if switch[OF_VECTORS]:
                    read_vectors(raw, codes, first, size, scratch)
                else:
                    read_weights(raw, codes, has_base, first, size, scratch)
                there = switch[OF_VECTORS]
            if sparsify(
                scratch, start + first, size, numbers[result], keys[result], switch[RESCALING]
            ):
                there = NOTHING
            if switch[HOW] == PLAIN_SUM:
                add_up(scratch, size, coefficients)
            else:
                join(scratch, size, coefficients, switch, signs[result])
            if switch[OF_VECTORS]:
                for place in range(size):
                    update[place] += scratch[0, place]
            if not narrow(update, size, switch[OUT_CODE], first, out[result]):
                finite[result] = 0
