"""A tensor whose rows are taken from other places: embeddings of vocabularies that differ."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from nan_merge.dtypes import DType
from nan_merge.lazy_torch import torch
from nan_merge.safetensors_file import BlockReader, TensorInfo

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RowRun:
    """Rows that follow each other here as in every place that they come from.

    Attributes:
        first: First of them in the tensor.
        count: How many.
        origins: Each source's number and the first row there; of several, the mean is taken.
    """

    first: int
    count: int
    origins: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class RowMappedTensor(TensorInfo):
    """Rows of other tensors of the same width, in another order.

    Attributes:
        name: Tensor's name.
        path: File of the model that it stands for, which messages name.
        dtype: Type of the elements as they are read: the sources' own if they all have one and
            no mean is taken, else float32 (float64 if a source is).
        shape: (rows, *shape of a row).
        offset: Nothing; there is no place where these elements lie.
        own: The model's tensor as it is stored.
        sources: Tensors that rows come from.
        runs: Where each row comes from; together they are all rows, in order.
    """

    own: TensorInfo
    sources: tuple[TensorInfo, ...]
    runs: tuple[RowRun, ...]

    @property
    def stored_dtype(self) -> DType:
        """Type that the model keeps it in, and so its type in a result that names none."""
        return self.own.stored_dtype

    @cached_property
    def map_digest(self) -> str:
        """SHA-256 of where every row comes from, for keys under which its content is remembered."""
        runs = [(run.first, run.count, run.origins) for run in self.runs]
        places = [(source.name, source.path, source.offset) for source in self.sources]
        return hashlib.sha256(repr((runs, places)).encode()).hexdigest()

    @cached_property
    def _firsts(self) -> list[int]:
        return [run.first for run in self.runs]

    def read_from(self, reader: BlockReader, start: int, count: int) -> Tensor:
        """Elements of the flattened tensor; equal bytes however a range is divided into reads."""
        width = math.prod(self.shape[1:])
        pieces: list[Tensor] = []
        place, end = start, start + count
        for run in self.runs[bisect_right(self._firsts, start // width) - 1 :]:
            if place >= end:
                break
            skipped = place - run.first * width
            size = min(end - place, run.count * width - skipped)
            pieces.append(self._read_run(reader, run, width, skipped, size))
            place += size
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _read_run(
        self, reader: BlockReader, run: RowRun, width: int, skipped: int, size: int
    ) -> Tensor:
        rows = [
            reader.read(self.sources[source], first * width + skipped, size)
            for source, first in run.origins
        ]
        if len(rows) == 1:
            return rows[0].to(self.dtype.torch)
        return torch.stack([row.double() for row in rows]).mean(dim=0).to(self.dtype.torch)


def map_rows(
    own: TensorInfo,
    sources: Sequence[TensorInfo],
    origins: Sequence[Sequence[tuple[int, int]]],
) -> TensorInfo:
    """The tensor whose row i comes from ``origins[i]``: (number of the source, row there) each.

    Returns:
        ``own`` itself if that is what the rows come to.
    """
    runs = tuple(_runs(origins))
    whole = [RowRun(0, own.shape[0], ((place, 0),)) for place, s in enumerate(sources) if s is own]
    if len(runs) == 1 and runs[0] in whole:
        return own
    used = sorted({source for run in runs for source, _ in run.origins})
    # Only what is used, so that a task does not carry, nor a type depend on, the rest.
    places = {source: place for place, source in enumerate(used)}
    runs = tuple(
        RowRun(run.first, run.count, tuple((places[source], row) for source, row in run.origins))
        for run in runs
    )
    kept = tuple(sources[source] for source in used)
    dtypes = {source.dtype for source in kept}
    has_means = any(len(run.origins) > 1 for run in runs)
    wide = DType.F64 if DType.F64 in dtypes else DType.F32
    dtype = wide if has_means or len(dtypes) > 1 else kept[0].dtype
    shape = (len(origins), *own.shape[1:])
    return RowMappedTensor(own.name, own.path, dtype, shape, 0, own, kept, runs)


def _runs(origins: Sequence[Sequence[tuple[int, int]]]) -> list[RowRun]:
    runs: list[RowRun] = []
    first = 0
    for row in range(1, len(origins) + 1):
        expected = tuple((source, place + row - first) for source, place in origins[first])
        if row == len(origins) or tuple(origins[row]) != expected:
            runs.append(RowRun(first, row - first, tuple(origins[first])))
            first = row
    return runs
