"""The merge itself: read every block of all inputs once, merge it by every recipe, write it.

One call writes the same file of several merges over the same inputs. Every block goes straight to
its place in a file of the final size, so workers need no order among them.

Two attempts at one file may be alive at once: of a worker that was given up for dead, and of the
one that was started in its place. Each writes to a file of its own until that is whole; both hold
the same bytes, and whichever comes first or last makes no difference.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nan_merge.blocks import Chunk, ContentHash, cut
from nan_merge.compiled_merge import merge_run, prepare
from nan_merge.device import chosen_device
from nan_merge.dtypes import DType, finite
from nan_merge.errors import CheckpointError, IncompatibleError
from nan_merge.layout import AlignedTensor, ShardPlan
from nan_merge.lazy_torch import torch
from nan_merge.measured import Measured, is_compiled, method_of
from nan_merge.publish import (
    explain_write_errors,
    partial_path,
    partial_paths,
    start_writeback,
    write_bytes_atomically,
)
from nan_merge.raw_runs import raw_runs, run_raw
from nan_merge.recipe import MergeRecipe
from nan_merge.safetensors_file import make_header
from nan_merge.tasks import report_progress
from nan_merge.torch_merge import load_run, merge_run_by_torch
from nan_merge.workers import run_chunks, run_on_threads

JOURNAL = ".journal"  # inside a staging folder: one record per finished file


@dataclass(frozen=True)
class ShardJob:
    """One file of one merge.

    Attributes:
        shard: What it holds and where the inputs lie.
        recipe: The method and its options.
        measured: Coefficients and statistics.
        folder: Where to write it.
    """

    shard: ShardPlan
    recipe: MergeRecipe
    measured: Measured
    folder: str


@dataclass(frozen=True)
class ShardRecord:
    """One finished file.

    Attributes:
        file_name: Its name.
        num_bytes: Its size.
        device: Where it was computed.
        tensors: Tensor's name -> xxh3 of its segments, in hexadecimal.
        inputs: The same for every input, the base first if there is one.
        repairs: What the method had to repair -> tensor's name -> how much of it.
    """

    file_name: str
    num_bytes: int
    device: str
    tensors: dict[str, list[str]]
    inputs: list[dict[str, list[str]]]
    repairs: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])


@dataclass(frozen=True)
class _Output:
    """An open file of this attempt's own, and where each tensor's data begins in it."""

    job: ShardJob
    partial: Path
    descriptor: int
    offsets: dict[str, int]
    # The system lets one writer into a file at a time; others would wait for it on a busy core.
    writing: threading.Lock = field(default_factory=threading.Lock)

    def write(self, tensor: AlignedTensor, start: int, stored: np.ndarray) -> None:
        data = stored.data
        itemsize = tensor.output_dtype(self.job.shard.dtype).itemsize
        begin = offset = self.offsets[tensor.name] + start * itemsize
        with self.writing:
            while len(data):
                written = os.pwrite(self.descriptor, data, offset)
                data, offset = data[written:], offset + written
        start_writeback(self.descriptor, begin, offset - begin)


Digests = tuple[bytes, ...]


class MergedChunk(NamedTuple):
    """What is kept of a chunk: digests of every input and output, and repairs of every output."""

    inputs: list[Digests]
    outputs: list[Digests]
    repairs: list[dict[str, float]]


def merge_shards(jobs: Sequence[ShardJob], workers: int = 1) -> list[ShardRecord]:
    """Write the same file of several merges, unless their journals say that it is whole.

    Args:
        jobs: Jobs whose shards hold the same tensors in the same order and whose methods take
            the same unit.
        workers: Processes to work on.

    Raises:
        CheckpointError: If an input is cut short, or a result is not finite.
        IncompatibleError: If models disagree on a tensor of integers.
        OutputError: If the disk is full.
    """
    records = [_finished(job) for job in jobs]
    todo = [job for job, record in zip(jobs, records, strict=True) if record is None]
    written = iter(_write(todo, workers) if todo else ())
    return [record or next(written) for record in records]


def _paths(job: ShardJob) -> tuple[Path, Path]:
    folder = Path(job.folder)
    return folder / job.shard.file_name, folder / JOURNAL / f"{job.shard.file_name}.json"


def _finished(job: ShardJob) -> ShardRecord | None:
    path, journal = _paths(job)
    if not (journal.is_file() and path.is_file()):
        return None
    record = ShardRecord(**json.loads(journal.read_text(encoding="utf-8")))
    return record if path.stat().st_size == record.num_bytes else None


def _write(jobs: Sequence[ShardJob], workers: int) -> list[ShardRecord]:
    with ExitStack() as stack:
        stack.enter_context(explain_write_errors(_paths(jobs[0])[0]))
        outputs = [_open(stack, job) for job in jobs]
        chunks = cut(jobs[0].shard.tensors, method_of(jobs[0].recipe).unit)
        merged = list(_merge_chunks(chunks, outputs, workers))
        for output in outputs:
            os.fsync(output.descriptor)
        return [_close(output, place, chunks, merged) for place, output in enumerate(outputs)]


def _open(stack: ExitStack, job: ShardJob) -> _Output:
    """A file of the final size with its header written."""
    shard, path = job.shard, _paths(job)[0]
    layout = [(t.name, t.output_dtype(shard.dtype), t.reference.shape) for t in shard.tensors]
    header = make_header(layout)
    offsets: dict[str, int] = {}
    end = len(header)
    for name, dtype, shape in layout:
        offsets[name] = end
        end += math.prod(shape) * dtype.itemsize
    partial = partial_path(path)
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    stack.callback(os.close, descriptor)
    stack.callback(partial.unlink, missing_ok=True)  # it has its name by then, or is of no use
    os.ftruncate(descriptor, end)
    os.pwrite(descriptor, header, 0)
    return _Output(job, partial, descriptor, offsets)


def _close(
    output: _Output,
    place: int,
    chunks: Sequence[Chunk],
    merged: Sequence[MergedChunk],
) -> ShardRecord:
    """Give the file its name and keep a record of it; after this it is not written again."""
    path, journal = _paths(output.job)
    num_inputs = len(merged[0].inputs) if merged else 0
    tensors: dict[str, list[str]] = {}
    repairs: dict[str, dict[str, float]] = {}
    inputs: list[dict[str, list[str]]] = [{} for _ in range(num_inputs)]
    for chunk, found in zip(chunks, merged, strict=True):
        name = chunk.tensor.name
        tensors.setdefault(name, []).extend(digest.hex() for digest in found.outputs[place])
        for known, segments in zip(inputs, found.inputs, strict=True):
            known.setdefault(name, []).extend(digest.hex() for digest in segments)
        for repair, number in found.repairs[place].items():
            of_repair = repairs.setdefault(repair, {})
            of_repair[name] = of_repair.get(name, 0) + number
    try:
        output.partial.replace(path)
    except FileNotFoundError:
        # Another attempt at this file was faster, and has removed what it took for a leftover.
        if (found := _finished(output.job)) is not None:
            return found
        raise
    device = chosen_device(output.job.recipe.device)
    num_bytes = os.fstat(output.descriptor).st_size
    record = ShardRecord(path.name, num_bytes, device, tensors, inputs, repairs)
    # No folder: another attempt was faster, and the merge has gone to its place since.
    write_bytes_atomically(journal, json.dumps(asdict(record)).encode(), make_folder=False)
    remove_partial_files(path)
    return record


def remove_partial_files(path: Path) -> None:
    """Remove what attempts at a file of weights left that died, or that come too late."""
    for leftover in partial_paths(path):
        leftover.unlink(missing_ok=True)


def _merge_chunks(
    chunks: Sequence[Chunk], outputs: Sequence[_Output], workers: int
) -> Iterator[MergedChunk]:
    """What is kept of every chunk, as it is merged and written."""
    recipes = [output.job.recipe for output in outputs]
    device = chosen_device(recipes[0].device)
    if device == "cpu" and all(is_compiled(recipe) for recipe in recipes):
        return run_raw(lambda chunk: _merge_compiled(chunk, outputs), chunks, workers)
    # A GPU computes on its own; threads then keep it busy while others read and write.
    run = run_chunks if device == "cpu" else run_on_threads
    return run(lambda chunk: _merge_by_torch(chunk, outputs, device), chunks, workers)


class _Hashes:
    """Content hashes of one chunk in every input and every output."""

    def __init__(self, tensor: AlignedTensor, outputs: Sequence[_Output]) -> None:
        dtypes = [tensor.output_dtype(output.job.shard.dtype) for output in outputs]
        self.inputs = [ContentHash(info.dtype.itemsize) for info in tensor.inputs]
        self.outputs = [ContentHash(dtype.itemsize) for dtype in dtypes]

    def read(self, stored: Sequence[np.ndarray]) -> None:
        for content, data in zip(self.inputs, stored, strict=True):
            content.update(data)

    def digests(self, repairs: list[dict[str, float]] | None = None) -> MergedChunk:
        return MergedChunk(
            [content.digests() for content in self.inputs],
            [content.digests() for content in self.outputs],
            repairs or [{} for _ in self.outputs],
        )


def _merge_compiled(chunk: Chunk, outputs: Sequence[_Output]) -> MergedChunk:
    tensor = chunk.tensor
    if not tensor.is_merged:
        return _copy(chunk, outputs)
    hashes = _Hashes(tensor, outputs)
    jobs = [output.job for output in outputs]
    dtypes = [tensor.output_dtype(job.shard.dtype) for job in jobs]
    prepared = prepare([(job.recipe, job.measured) for job in jobs], tensor, dtypes)
    for run in raw_runs(chunk):
        hashes.read(run.stored)
        results = zip(outputs, hashes.outputs, dtypes, merge_run(prepared, run, chunk), strict=True)
        for output, content, dtype, merged in results:
            if merged is None:
                raise _not_finite(tensor, run.stored, dtype)
            content.update(merged)
            output.write(tensor, run.start, merged)
    return hashes.digests()


def _merge_by_torch(chunk: Chunk, outputs: Sequence[_Output], device: str) -> MergedChunk:
    tensor = chunk.tensor
    if not tensor.is_merged:
        return _copy(chunk, outputs)
    hashes = _Hashes(tensor, outputs)
    repairs = [dict[str, float]() for _ in outputs]
    for run in chunk.runs():
        stored = run.read_stored()
        hashes.read(stored)
        raw = load_run(run, stored, device)
        for output, content, repaired in zip(outputs, hashes.outputs, repairs, strict=True):
            job, dtype = output.job, tensor.output_dtype(output.job.shard.dtype)
            report = partial(_add_repair, repaired)
            merged = merge_run_by_torch(job.recipe, job.measured, run, raw, dtype, report)
            if merged is None:
                raise _not_finite(tensor, stored, dtype)
            content.update(merged)
            output.write(tensor, run.start, merged)
        report_progress(sum(map(len, stored)))
    return hashes.digests(repairs)


def _add_repair(repairs: dict[str, float], repair: str, number: float) -> None:
    repairs[repair] = repairs.get(repair, 0) + number


def _copy(chunk: Chunk, outputs: Sequence[_Output]) -> MergedChunk:
    """A tensor that is taken from one model, or that cannot be averaged and all must agree on."""
    tensor = chunk.tensor
    hashes = _Hashes(tensor, outputs)
    for run in chunk.runs():
        stored = run.read_stored()
        hashes.read(stored)
        for info, data in zip(tensor.inputs, stored, strict=True):
            if info.dtype != tensor.reference.dtype or not np.array_equal(data, stored[0]):
                raise IncompatibleError(
                    f"{tensor.name}: {info.path} and {tensor.reference.path} hold different "
                    "integers, which cannot be merged. Are the models fine-tunes of one base?"
                )
        for output, content in zip(outputs, hashes.outputs, strict=True):
            data = _in_type(tensor, stored[0], tensor.output_dtype(output.job.shard.dtype))
            content.update(data)
            output.write(tensor, run.start, data)
        report_progress(sum(map(len, stored)))
    return hashes.digests()


def _in_type(tensor: AlignedTensor, stored: np.ndarray, dtype: DType) -> np.ndarray:
    """A copy's bytes, rounded once if the result is to have another type of number."""
    own = tensor.reference.dtype
    if own == dtype:
        return stored
    numbers = torch.from_numpy(stored).view(own.torch).to(dtype.torch)
    if not bool(numbers.isfinite().all()):
        raise _not_finite(tensor, [stored] * len(tensor.inputs), dtype)
    return numbers.view(torch.uint8).numpy()


def _not_finite(
    tensor: AlignedTensor, stored: Sequence[np.ndarray], dtype: DType
) -> CheckpointError:
    """Why a result is not finite: an input is not, or rounding made it so."""
    for info, data in zip(tensor.inputs, stored, strict=True):
        if not finite(data, info.dtype).all():
            return CheckpointError(
                f"{tensor.name}: the merged tensor holds NaN or infinity, because {info.path} "
                "does. Repair or leave out that model."
            )
    return CheckpointError(
        f"{tensor.name}: merged values are too large for {dtype}. "
        "Set `dtype: float32` or `dtype: bfloat16`, or smaller coefficients."
    )
