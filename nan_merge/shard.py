"""The merge itself: read corresponding blocks of all inputs, merge them, write one file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from nan_merge.errors import CheckpointError, IncompatibleError
from nan_merge.measure import Measured
from nan_merge.methods import METHODS
from nan_merge.plan import AlignedTensor, ShardPlan
from nan_merge.publish import explain_write_errors, sync_path, write_text_atomically
from nan_merge.recipe import MergeRecipe
from nan_merge.safetensors_file import BlockReader, make_header, tensor_bytes
from nan_merge.statistics import one_thread, read_cells

JOURNAL = ".journal"  # inside a staging folder: one record per finished file


@dataclass(frozen=True)
class ShardRecord:
    """One finished file.

    Attributes:
        file_name: Its name.
        sha256: Hash of its content, in hexadecimal.
        num_bytes: Its size.
    """

    file_name: str
    sha256: str
    num_bytes: int


def merge_shard(
    shard: ShardPlan, recipe: MergeRecipe, measured: Measured, folder: str
) -> ShardRecord:
    """Write one file of the result, unless the journal says that it is whole.

    Args:
        shard: What it holds and where the inputs lie.
        recipe: The method and its options.
        measured: Coefficients and statistics.
        folder: Where to write it.

    Raises:
        CheckpointError: If an input is cut short, or the result is not finite.
        IncompatibleError: If models disagree on a tensor of integers.
        OutputError: If the disk is full.
    """
    path = Path(folder) / shard.file_name
    journal = Path(folder) / JOURNAL / f"{shard.file_name}.json"
    if journal.is_file() and path.is_file():
        return ShardRecord(**json.loads(journal.read_text(encoding="utf-8")))
    partial = path.with_suffix(".partial")
    digest = hashlib.sha256()
    with explain_write_errors(path), BlockReader() as reader, one_thread():
        with partial.open("wb") as file:
            for piece in _file_pieces(shard, recipe, measured, reader):
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            num_bytes = file.tell()
        partial.replace(path)
        sync_path(path.parent)
    record = ShardRecord(shard.file_name, digest.hexdigest(), num_bytes)
    write_text_atomically(journal, json.dumps(asdict(record)))
    return record


def _file_pieces(
    shard: ShardPlan, recipe: MergeRecipe, measured: Measured, reader: BlockReader
) -> Iterator[bytes]:
    """The bytes of the file, piece by piece, in order."""
    tensors = shard.tensors
    yield make_header([(t.name, t.output_dtype(shard.dtype), t.reference.shape) for t in tensors])
    for tensor in tensors:
        if tensor.is_merged:
            yield from _merge_tensor(shard, tensor, recipe, measured, reader)
        else:
            yield _copy_tensor(tensor, reader)


def _merge_tensor(
    shard: ShardPlan,
    tensor: AlignedTensor,
    recipe: MergeRecipe,
    measured: Measured,
    reader: BlockReader,
) -> Iterator[bytes]:
    merge = METHODS[recipe.method.name].merge
    coefficients = measured.table.for_tensor(tensor.name)
    dtype = tensor.output_dtype(shard.dtype)
    for base, finetuned in read_cells(reader, tensor):
        merged = merge(base, finetuned, coefficients, recipe.method, measured.statistics)
        yield tensor_bytes(_finite(tensor, merged, dtype))


def _finite(tensor: AlignedTensor, merged: Tensor, dtype: torch.dtype) -> Tensor:
    """The block in its final type; refused if a value is NaN or infinite there."""
    rounded = merged.to(dtype)
    if not rounded.isfinite().all():
        if merged.isfinite().all():
            raise CheckpointError(
                f"{tensor.name}: merged values are too large for {dtype}. "
                "Set `dtype: float32` or `dtype: bfloat16`, or smaller coefficients."
            )
        raise CheckpointError(
            f"{tensor.name}: the merged tensor holds NaN or infinity, so one of these does: "
            + ", ".join(info.path for info in tensor.inputs)
            + ". Repair or leave out that model."
        )
    return rounded


def _copy_tensor(tensor: AlignedTensor, reader: BlockReader) -> bytes:
    """A tensor that holds no floating-point numbers cannot be averaged; all must agree on it."""
    reference = reader.read(tensor.reference)
    for info in tensor.inputs:
        if info.dtype != tensor.reference.dtype or not torch.equal(reader.read(info), reference):
            raise IncompatibleError(
                f"{tensor.name}: {info.path} and {tensor.reference.path} hold different integers, "
                "which cannot be merged. Are the models fine-tunes of one base?"
            )
    return tensor_bytes(reference)
