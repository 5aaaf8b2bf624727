"""Merge runs by the compiled kernel, for the methods that have a `Program`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nan_merge.blocks import Chunk, cut
from nan_merge.dtypes import DType
from nan_merge.measured import Measured, context_of, method_of
from nan_merge.methods.method import Program
from nan_merge.plan import AlignedTensor
from nan_merge.random import stream_keys
from nan_merge.raw_runs import RAW_RUN_ELEMENTS, RawRun, kernel_scratch, raw_runs, run_raw
from nan_merge.recipe import MergeRecipe
from nan_merge.workers import scratch_array


@dataclass(frozen=True)
class Prepared:
    """A recipe's program for one tensor, as arrays: float32 of length T unless said otherwise."""

    program: Program
    coefficients: np.ndarray
    thresholds: np.ndarray
    densities: np.ndarray
    keys: np.ndarray  # uint64, (T, 2)
    rescales: np.ndarray  # int64
    factors: np.ndarray


def prepare(recipe: MergeRecipe, measured: Measured, tensor: AlignedTensor) -> Prepared:
    """Everything about a tensor that does not change from run to run."""
    from nan_merge.kernels.combine import DIVIDE, MULTIPLY

    make_program = method_of(recipe).program
    assert make_program is not None, "only for methods that have a program"
    context = context_of(recipe, measured, tensor)
    program = make_program(measured.options_of(tensor.name, recipe.method), context)
    num_models = len(context.models)

    def row(values: Sequence[float], default: float) -> np.ndarray:
        return np.array(values or (default,) * num_models, np.float32)

    how = {None: 0, "divide": DIVIDE, "multiply": MULTIPLY}[program.rescaling]
    return Prepared(
        program=program,
        coefficients=row(measured.table.for_tensor(tensor.name), 0.0),
        thresholds=row(program.thresholds, 0.0),
        densities=row(program.densities, 1.0),
        keys=stream_keys(recipe.seed, context.models, tensor.name),
        rescales=np.full(num_models, how, np.int64),
        factors=row(program.factors, 1.0),
    )


def merge_run(prepared: Prepared, run: RawRun, chunk: Chunk, dtype: DType) -> np.ndarray | None:
    """One recipe's result for one run.

    Returns:
        Its bytes in the type asked for, valid until the next call; None if it is not all finite.
    """
    from nan_merge.kernels.combine import MEAN, PLAIN_SUM, SUM, WEIGHTED_MEAN, combine
    from nan_merge.kernels.convert import CODES, FLOAT32

    program = prepared.program
    joins = {None: PLAIN_SUM, "sum": SUM, "mean": MEAN, "weighted_mean": WEIGHTED_MEAN}
    merged = scratch_array("merged", (4 * RAW_RUN_ELEMENTS,), np.uint8)
    has_base = chunk.tensor.base is not None
    first = 1 if has_base and not program.uses_base else 0  # read for its hash, not merged
    is_finite = combine(
        run.rows[first:],
        run.codes[first:],
        int(has_base and program.uses_base),
        run.start,
        run.count,
        prepared.coefficients,
        prepared.thresholds,
        prepared.densities,
        prepared.keys,
        prepared.rescales,
        prepared.factors,
        joins[program.join],
        program.weigh_first,
        program.by_sign,
        np.float32(program.tie),
        np.float32(program.factor),
        kernel_scratch(chunk),
        CODES.get(dtype, FLOAT32),
        merged,
    )
    if dtype in CODES:
        return merged[: run.count * dtype.itemsize] if is_finite else None
    with np.errstate(over="ignore"):
        rounded = merged.view(np.float32)[: run.count].astype(np.dtype(dtype.label))
    return rounded.view(np.uint8) if is_finite and np.isfinite(rounded).all() else None


def count_signs(
    tensors: Sequence[AlignedTensor],
    voters: Sequence[tuple[MergeRecipe, Measured]],
    workers: int = 1,
) -> list[int]:
    """Elected plus signs minus elected minus signs, for each of several recipes."""

    def count(chunk: Chunk) -> list[int]:
        merges = [prepare(recipe, measured, chunk.tensor) for recipe, measured in voters]
        counts = [0] * len(voters)
        for run in raw_runs(chunk):
            for place, prepared in enumerate(merges):
                counts[place] += _count_elected(prepared, run, chunk)
        return counts

    found = list(run_raw(count, cut([t for t in tensors if t.is_merged]), workers))
    return [sum(column) for column in zip(*found, strict=True)]


def _count_elected(prepared: Prepared, run: RawRun, chunk: Chunk) -> int:
    from nan_merge.kernels.signs import count_elected

    program = prepared.program
    return count_elected(
        run.rows,
        run.codes,
        run.count,
        prepared.coefficients,
        prepared.thresholds,
        program.weigh_first,
        program.by_sign,
        kernel_scratch(chunk),
    )
