"""Merge runs by the compiled kernel, for the methods that have a `Program`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nan_merge.blocks import Chunk, cut
from nan_merge.dtypes import DType
from nan_merge.layout import AlignedTensor
from nan_merge.measured import Measured, context_of, method_of
from nan_merge.random import stream_keys
from nan_merge.raw_runs import RAW_RUN_ELEMENTS, RawRun, kernel_scratch, raw_runs, run_raw
from nan_merge.recipe import MergeRecipe
from nan_merge.workers import scratch_array

# So many results at a time: what each of them takes in memory is 1 MiB a thread.
MOST_RESULTS = 16


@dataclass(frozen=True)
class Prepared:
    """Several recipes over the same inputs, for one tensor, as `kernels.combine` takes them."""

    numbers: np.ndarray
    keys: np.ndarray
    switches: np.ndarray
    signs: np.ndarray
    dtypes: tuple[DType, ...]  # of the results

    def __getitem__(self, places: slice) -> Prepared:
        return Prepared(
            self.numbers[places],
            self.keys[places],
            self.switches[places],
            self.signs[places],
            self.dtypes[places],
        )


def prepare(
    merges: Sequence[tuple[MergeRecipe, Measured]],
    tensor: AlignedTensor,
    dtypes: Sequence[DType],
) -> Prepared:
    """Everything about a tensor that does not change from run to run."""
    from nan_merge.kernels.convert import CODES, FLOAT32

    rows = [_program_rows(recipe, measured, tensor) for recipe, measured in merges]
    names = context_of(*merges[0], tensor).models
    keys = [stream_keys(recipe.seed, names, tensor.name) for recipe, _ in merges]
    codes = [CODES.get(dtype, FLOAT32) for dtype in dtypes]
    switches = [[*row[1], code] for row, code in zip(rows, codes, strict=True)]
    return Prepared(
        np.array([row[0] for row in rows], np.float32),
        np.array(keys),
        np.array(switches, np.int64),
        np.array([row[2] for row in rows], np.float32),
        tuple(dtypes),
    )


def _program_rows(
    recipe: MergeRecipe, measured: Measured, tensor: AlignedTensor
) -> tuple[list[tuple[float, ...]], list[int], tuple[float, float]]:
    """A recipe's rows of numbers, switches but for the last, and signs."""
    from nan_merge.kernels.combine import (
        DIVIDE,
        MEAN,
        MULTIPLY,
        PLAIN_SUM,
        SUM,
        WEIGHTED_MEAN,
    )

    make_program = method_of(recipe).program
    assert make_program is not None, "only for methods that have a program"
    context = context_of(recipe, measured, tensor)
    program = make_program(measured.options_of(tensor.name, recipe.method), context)
    num_models = len(context.models)
    joins = {None: PLAIN_SUM, "sum": SUM, "mean": MEAN, "weighted_mean": WEIGHTED_MEAN}
    rescalings = {None: 0, "divide": DIVIDE, "multiply": MULTIPLY}
    numbers = [
        measured.table.for_tensor(tensor.name),
        program.thresholds or (0.0,) * num_models,
        program.densities or (1.0,) * num_models,
        program.factors or (1.0,) * num_models,
    ]
    switches = [
        int(program.uses_base),
        joins[program.join],
        int(program.weigh_first),
        int(program.by_sign),
        rescalings[program.rescaling],
    ]
    return numbers, switches, (program.tie, program.factor)


def merge_run(prepared: Prepared, run: RawRun, chunk: Chunk) -> Iterator[np.ndarray | None]:
    """Every recipe's result for one run.

    Yields:
        Its bytes in the type asked for, valid until the next call; None if it is not all finite.
    """
    from nan_merge.kernels.combine import combine
    from nan_merge.kernels.convert import CODES

    for first in range(0, len(prepared.dtypes), MOST_RESULTS):
        part = prepared[first : first + MOST_RESULTS]
        num_results = len(part.dtypes)
        merged = scratch_array("merged", (num_results, 4 * RAW_RUN_ELEMENTS), np.uint8)
        finite = np.empty(num_results, np.uint8)
        combine(
            run.rows,
            run.codes,
            0 if chunk.tensor.base is None else 1,
            run.start,
            run.count,
            part.numbers,
            part.keys,
            part.switches,
            part.signs,
            kernel_scratch(chunk),
            merged,
            finite,
        )
        for row, dtype, is_finite in zip(merged, part.dtypes, finite, strict=True):
            stored = row[: run.count * dtype.itemsize]
            if dtype not in CODES:
                with np.errstate(over="ignore"):
                    rounded = row.view(np.float32)[: run.count].astype(np.dtype(dtype.label))
                is_finite = is_finite and np.isfinite(rounded).all()
                stored = rounded.view(np.uint8)
            yield stored if is_finite else None


def count_signs(
    tensors: Sequence[AlignedTensor],
    voters: Sequence[tuple[MergeRecipe, Measured]],
    workers: int = 1,
) -> list[int]:
    """Elected plus signs minus elected minus signs, for each of several recipes."""

    def count(chunk: Chunk) -> list[int]:
        prepared = prepare(voters, chunk.tensor, [DType.F32] * len(voters))
        counts = [0] * len(voters)
        for run in raw_runs(chunk):
            for place in range(len(voters)):
                counts[place] += _count_elected(prepared, place, run, chunk)
        return counts

    found = list(run_raw(count, cut([t for t in tensors if t.is_merged]), workers))
    return [sum(column) for column in zip(*found, strict=True)]


def _count_elected(prepared: Prepared, place: int, run: RawRun, chunk: Chunk) -> int:
    from nan_merge.kernels.combine import BY_SIGN, COEFFICIENTS, THRESHOLDS, WEIGH_FIRST
    from nan_merge.kernels.signs import count_elected

    numbers, switches = prepared.numbers[place], prepared.switches[place]
    return count_elected(
        run.rows,
        run.codes,
        run.count,
        numbers[COEFFICIENTS],
        numbers[THRESHOLDS],
        switches[WEIGH_FIRST],
        switches[BY_SIGN],
        kernel_scratch(chunk),
    )
