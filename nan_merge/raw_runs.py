"""Runs of a chunk as the compiled kernels take them: stored bytes, one row per input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from nan_merge.blocks import Chunk
from nan_merge.safetensors_file import TensorInfo
from nan_merge.tasks import report_progress
from nan_merge.workers import current_reader, run_on_threads, scratch_array

# What is read at once: few enough that it is still in the cache when it is hashed and merged,
# and so many that the interpreter's part in it costs little.
RAW_RUN_ELEMENTS = 1 << 18
Result = TypeVar("Result")


@dataclass(frozen=True)
class RawRun:
    """A run of elements of every input.

    Attributes:
        start: Its first element in the flattened tensor.
        count: Its number of elements.
        stored: Per input, the bytes as they are stored: uint8.
        rows: The same as the kernels read it, (inputs, at least 4 x count) uint8; types that they
            do not know are float32 there.
        codes: Per input, the type in ``rows``: int64.
    """

    start: int
    count: int
    stored: list[np.ndarray]
    rows: np.ndarray
    codes: np.ndarray


def raw_runs(chunk: Chunk) -> Iterator[RawRun]:
    """Read a chunk run by run; each is valid until the next one."""
    for start in range(chunk.start, chunk.start + chunk.count, RAW_RUN_ELEMENTS):
        run = _read(chunk, start, min(RAW_RUN_ELEMENTS, chunk.start + chunk.count - start))
        yield run
        report_progress(sum(map(len, run.stored)))


def _read(chunk: Chunk, start: int, count: int) -> RawRun:
    from nan_merge.kernels.convert import CODES, FLOAT32

    inputs = chunk.tensor.inputs
    rows = scratch_array("rows", (len(inputs), 4 * RAW_RUN_ELEMENTS), np.uint8)
    codes = np.array([CODES.get(info.dtype, FLOAT32) for info in inputs])
    stored: list[np.ndarray] = []
    for place, (info, row) in enumerate(zip(inputs, rows, strict=True)):
        known = info.dtype in CODES
        data = current_reader().read_stored(info, start, count, place, row if known else None)
        stored.append(data)
        if not known:
            with np.errstate(over="ignore"):  # infinity, as torch makes of it; refused later
                row.view(np.float32)[:count] = data.view(np.dtype(info.dtype.label))
        elif type(info) is not TensorInfo:  # computed, in memory of its own
            row[: len(data)] = data
    return RawRun(start, count, stored, rows, codes)


def run_raw(
    function: Callable[[Chunk], Result], chunks: Sequence[Chunk], workers: int
) -> Iterator[Result]:
    """Call a function that works on raw runs on every chunk; see `run_on_threads`."""
    computed = any(type(info) is not TensorInfo for chunk in chunks for info in chunk.tensor.inputs)
    return run_on_threads(function, chunks, workers, with_torch=computed)


def kernel_scratch(chunk: Chunk) -> np.ndarray:
    """The float32 rows that the kernels work in."""
    from nan_merge.kernels.convert import BLOCK
    from nan_merge.kernels.vectors import SCRATCH_ROWS

    num_rows = 1 + len(chunk.tensor.finetuned) + SCRATCH_ROWS
    return scratch_array("scratch", (num_rows, BLOCK), np.float32)
