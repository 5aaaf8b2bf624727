"""A tensor whose rows are taken from other places: embeddings of vocabularies that differ."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from nan_merge.dtypes import DType
from nan_merge.lazy_torch import torch
from nan_merge.safetensors_file import BlockReader, TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

# In place of a row's number: the mean of all rows of its source.
MEAN_ROW = -1
# Elements that are read at once for such a mean; part of its definition, as of every sum's.
MEAN_ELEMENTS = 1 << 17


@dataclass(frozen=True)
class RowRun:
    """Rows that follow each other here as in every place that they come from.

    Attributes:
        first: First of them in the tensor.
        count: How many.
        origins: Each source's number and the first row there (or `MEAN_ROW` for all of them); of
            several, the mean is taken.
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
            if first != MEAN_ROW
            else self._repeat_mean(reader, self.sources[source], skipped, size)
            for source, first in run.origins
        ]
        if len(rows) == 1:
            return rows[0].to(self.dtype.torch)
        return torch.stack([row.double() for row in rows]).mean(dim=0).to(self.dtype.torch)

    def _repeat_mean(
        self, reader: BlockReader, source: TensorInfo, skipped: int, size: int
    ) -> Tensor:
        """Elements ``skipped`` to ``skipped + size`` of the mean row written again and again."""
        mean = reader.remember((source, MEAN_ROW), lambda: _mean_row(reader, source))
        return mean[(torch.arange(size) + skipped) % len(mean)]

    @property
    def num_mean_rows(self) -> int:
        """How many of its rows are the mean of all rows of a source."""
        return sum(run.count for run in self.runs if _is_mean(run))


def _is_mean(run: RowRun) -> bool:
    return any(row == MEAN_ROW for _, row in run.origins)


def _mean_row(reader: BlockReader, source: TensorInfo) -> Tensor:
    """The mean of a tensor's rows, flat, float64; the same bytes on any machine.

    numpy adds rows one after another in one thread, which torch does not promise.
    """
    width = math.prod(source.shape[1:])
    num_rows = max(1, MEAN_ELEMENTS // width)
    total = np.zeros(width)
    for first in range(0, source.shape[0], num_rows):
        count = min(num_rows, source.shape[0] - first)
        rows = reader.read(source, first * width, count * width)
        total += np.add.reduce(rows.double().numpy().reshape(count, width), axis=0)
    return torch.from_numpy(total / source.shape[0])


def map_rows(
    own: TensorInfo,
    sources: Sequence[TensorInfo],
    origins: Sequence[Sequence[tuple[int, int]]],
) -> TensorInfo:
    """The tensor whose row i comes from ``origins[i]``: (number of the source, row there) each.

    Args:
        own: The model's tensor as it is stored.
        sources: Tensors that rows come from, of one width.
        origins: For every row of the result one source, or several whose mean is taken. The row
            may be `MEAN_ROW`.

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
    has_means = any(len(run.origins) > 1 or _is_mean(run) for run in runs)
    wide = DType.F64 if DType.F64 in dtypes else DType.F32
    dtype = wide if has_means or len(dtypes) > 1 else kept[0].dtype
    shape = (len(origins), *own.shape[1:])
    return RowMappedTensor(own.name, own.path, dtype, shape, 0, own, kept, runs)


def _runs(origins: Sequence[Sequence[tuple[int, int]]]) -> list[RowRun]:
    runs: list[RowRun] = []
    first = 0
    for row in range(1, len(origins) + 1):
        expected = tuple(
            (source, place if place == MEAN_ROW else place + row - first)
            for source, place in origins[first]
        )
        if row == len(origins) or tuple(origins[row]) != expected:
            runs.append(RowRun(first, row - first, tuple(origins[first])))
            first = row
    return runs
