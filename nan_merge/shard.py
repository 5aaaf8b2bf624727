"""The merge itself: read every block of all inputs once, merge it by every recipe, write it.

One call writes the same file of several merges over the same inputs. Every block goes straight to
its place in a file of the final size, so workers need no order among them.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from nan_merge.blocks import (
    Chunk,
    ContentHash,
    Run,
    cut,
    run_chunks,
    shape_of_block,
)
from nan_merge.errors import CheckpointError, IncompatibleError
from nan_merge.measure import Measured, method_of
from nan_merge.methods import Context
from nan_merge.plan import AlignedTensor, ShardPlan
from nan_merge.publish import explain_write_errors, start_writeback, write_text_atomically
from nan_merge.recipe import MergeRecipe
from nan_merge.safetensors_file import make_header

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
        tensors: Tensor's name -> xxh3 of its segments, in hexadecimal.
        inputs: The same for every input, the base first if there is one.
    """

    file_name: str
    num_bytes: int
    tensors: dict[str, list[str]]
    inputs: list[dict[str, list[str]]]


@dataclass(frozen=True)
class _Output:
    """An open file and where each tensor's data begins in it."""

    job: ShardJob
    descriptor: int
    offsets: dict[str, int]

    def write(self, tensor: AlignedTensor, start: int, piece: Tensor) -> None:
        data = piece.view(-1).view(torch.uint8).numpy().data
        offset = self.offsets[tensor.name] + start * piece.dtype.itemsize
        begin = offset
        while len(data):
            written = os.pwrite(self.descriptor, data, offset)
            data, offset = data[written:], offset + written
        start_writeback(self.descriptor, begin, offset - begin)


Digests = tuple[bytes, ...]


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
        digests = list(run_chunks(lambda chunk: _merge_chunk(chunk, outputs), chunks, workers))
        for output in outputs:
            os.fsync(output.descriptor)
        return [_close(output, place, chunks, digests) for place, output in enumerate(outputs)]


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
    descriptor = os.open(path.with_suffix(".partial"), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    stack.callback(os.close, descriptor)
    os.ftruncate(descriptor, end)
    os.pwrite(descriptor, header, 0)
    return _Output(job, descriptor, offsets)


def _close(
    output: _Output,
    place: int,
    chunks: Sequence[Chunk],
    digests: Sequence[tuple[list[Digests], list[Digests]]],
) -> ShardRecord:
    """Give the file its name and keep a record of it; after this it is not written again."""
    path, journal = _paths(output.job)
    num_inputs = len(digests[0][0]) if digests else 0
    tensors: dict[str, list[str]] = {}
    inputs: list[dict[str, list[str]]] = [{} for _ in range(num_inputs)]
    for chunk, (of_inputs, of_outputs) in zip(chunks, digests, strict=True):
        name = chunk.tensor.name
        tensors.setdefault(name, []).extend(digest.hex() for digest in of_outputs[place])
        for known, segments in zip(inputs, of_inputs, strict=True):
            known.setdefault(name, []).extend(digest.hex() for digest in segments)
    path.with_suffix(".partial").replace(path)
    record = ShardRecord(path.name, os.fstat(output.descriptor).st_size, tensors, inputs)
    write_text_atomically(journal, json.dumps(asdict(record)))
    return record


def _merge_chunk(chunk: Chunk, outputs: Sequence[_Output]) -> tuple[list[Digests], list[Digests]]:
    """Merge one chunk into every output; digests of the inputs and of the outputs."""
    tensor = chunk.tensor
    of_inputs = [ContentHash(info.dtype.itemsize) for info in tensor.inputs]
    dtypes = [tensor.output_dtype(output.job.shard.dtype) for output in outputs]
    of_outputs = [ContentHash(dtype.itemsize) for dtype in dtypes]
    for run in chunk.runs():
        raw = run.read()
        for content, piece in zip(of_inputs, raw, strict=True):
            content.update(piece)
        for output, content, dtype in zip(outputs, of_outputs, dtypes, strict=True):
            if tensor.is_merged:
                piece = _merge_run(output.job, run, raw, dtype)
            else:
                piece = _agreed(tensor, raw)
            content.update(piece)
            output.write(tensor, run.start, piece)
    return [c.digests() for c in of_inputs], [c.digests() for c in of_outputs]


def _merge_run(job: ShardJob, run: Run, raw: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """One recipe's result for one run, block by block; methods may overwrite what they get."""
    tensor, measured = run.chunk.tensor, job.measured
    method = method_of(job.recipe)
    coefficients = measured.table.for_tensor(tensor.name)
    merged = torch.empty(run.count, dtype=dtype)
    context = Context(
        tensor=tensor.name,
        shape=tensor.reference.shape,
        seed=job.recipe.seed,
        models=measured.table.models,
        thresholds=measured.thresholds_of(tensor.name),
        majority_sign=measured.majority_sign,
        norms=measured.norms.get(tensor.name),
    )
    for first, last in run.blocks():
        shape = shape_of_block(run.chunk, last - first, method.unit)
        base, models = run.floats(raw, first, last)
        here = replace(context, start=run.start + first)
        piece = method.merge(
            None if base is None else base.view(shape),
            [model.view(shape) for model in models],
            coefficients,
            measured.options_of(tensor.name, job.recipe.method),
            here,
        )
        merged[first:last] = piece.view(-1)
        _refuse_non_finite(tensor, piece, merged[first:last])
    return merged


def _refuse_non_finite(tensor: AlignedTensor, merged: Tensor, rounded: Tensor) -> None:
    """Refuse a block that holds NaN or infinity, or does so once it is rounded."""
    # A sum is finite unless a value is not, or it overflows; only then look at every value.
    # bfloat16 has float32's range, so only float16 can overflow by rounding.
    checked = rounded if rounded.dtype == torch.float16 else merged
    if math.isfinite(checked.sum(dtype=torch.float32).item()) or rounded.isfinite().all():
        return
    if merged.isfinite().all():
        raise CheckpointError(
            f"{tensor.name}: merged values are too large for {rounded.dtype}. "
            "Set `dtype: float32` or `dtype: bfloat16`, or smaller coefficients."
        )
    raise CheckpointError(
        f"{tensor.name}: the merged tensor holds NaN or infinity, so one of these does: "
        + ", ".join(info.path for info in tensor.inputs)
        + ". Repair or leave out that model."
    )


def _agreed(tensor: AlignedTensor, raw: Sequence[Tensor]) -> Tensor:
    """A tensor that holds no floating-point numbers cannot be averaged; all must agree on it."""
    for info, piece in zip(tensor.inputs, raw, strict=True):
        if piece.dtype != raw[0].dtype or not torch.equal(piece, raw[0]):
            raise IncompatibleError(
                f"{tensor.name}: {info.path} and {tensor.reference.path} hold different integers, "
                "which cannot be merged. Are the models fine-tunes of one base?"
            )
    return raw[0]
