"""Cut tensors into pieces of work.

A *block* is the unit of arithmetic: small enough that all that is made of it stays in the
processor's cache. A *chunk* is the unit of work and of hashing: a run of blocks of one tensor,
on a fixed grid, that one process works through. Neither depends on the number of workers,
so neither do sums and hashes over them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from nan_merge.layout import AlignedTensor
from nan_merge.lazy_torch import torch
from nan_merge.methods.method import Unit
from nan_merge.workers import current_reader, scratch

if TYPE_CHECKING:
    from torch import Tensor

    Block = tuple[Tensor | None, list[Tensor]]  # of the base, if there is one, and of T models

BLOCK_ELEMENTS = 1 << 16
RUN_ELEMENTS = 1 << 20
# Part of the definition of every sum: another number would change last bits of norms and so,
# now and then, of a merged weight.
CHUNK_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Chunk:
    """A run of elements of one flattened tensor.

    Attributes:
        tensor: The tensor in every input.
        start: Its first element.
        count: Its number of elements; 0 for an empty tensor.
        block_elements: Elements of a block; the last may be shorter.
    """

    tensor: AlignedTensor
    start: int
    count: int
    block_elements: int = BLOCK_ELEMENTS

    def runs(self) -> Iterator[Run]:
        """What is read at once: some blocks, so that reading costs little beside arithmetic."""
        size = self.block_elements * max(1, RUN_ELEMENTS // self.block_elements)
        end = self.start + self.count
        for start in range(self.start, end, size):
            yield Run(self, start, min(size, end - start))


@dataclass(frozen=True)
class Run:
    """A part of a chunk that is read at once: elements ``start`` to ``start + count``."""

    chunk: Chunk
    start: int
    count: int

    def blocks(self) -> Iterator[tuple[int, int]]:
        """(first, last) of each block, counted from the run's start; last is not included."""
        for first in range(0, self.count, self.chunk.block_elements):
            yield first, min(first + self.chunk.block_elements, self.count)

    def read_stored(self) -> list[np.ndarray]:
        """The run of every input as bytes; valid until the next run is read."""
        reader = current_reader()
        return [
            reader.read_stored(info, self.start, self.count, slot)
            for slot, info in enumerate(self.chunk.tensor.inputs)
        ]

    def tensors(self, stored: Sequence[np.ndarray]) -> list[Tensor]:
        """What `read_stored` gave as tensors of the inputs' own types, flat."""
        return [
            torch.from_numpy(data).view(info.dtype.torch)
            for data, info in zip(stored, self.chunk.tensor.inputs, strict=True)
        ]

    def read_blocks(self) -> Iterator[Block]:
        """Read, and go through the blocks."""
        raw = self.tensors(self.read_stored())
        for first, last in self.blocks():
            yield self.floats(raw, first, last)

    def floats(self, raw: Sequence[Tensor], first: int, last: int) -> Block:
        """Elements ``first`` to ``last`` of what `tensors` gave, as float32, ours to change.

        They lie in memory that the next call uses again: taking fresh memory for
        every block costs a fourth of the whole merge.
        """
        pieces = [
            scratch(slot, last - first).copy_(piece[first:last]) for slot, piece in enumerate(raw)
        ]
        return (pieces.pop(0) if self.chunk.tensor.base else None), pieces


def cut(tensors: Sequence[AlignedTensor], unit: Unit = "element") -> list[Chunk]:
    """Chunks of tensors in order; blocks are whole rows or whole tensors if ``unit`` says so."""
    return [chunk for tensor in tensors for chunk in _cut_tensor(tensor, unit)]


def _cut_tensor(tensor: AlignedTensor, unit: Unit) -> Iterator[Chunk]:
    total = tensor.reference.num_elements
    if unit == "element":
        for start in range(0, max(total, 1), CHUNK_ELEMENTS):
            yield Chunk(tensor, start, min(CHUNK_ELEMENTS, total - start))
    elif unit == "row":
        row = tensor.reference.shape[-1] if tensor.reference.shape else 1
        yield Chunk(tensor, 0, total, max(1, BLOCK_ELEMENTS // max(row, 1)) * max(row, 1))
    else:
        yield Chunk(tensor, 0, total, max(total, 1))


def shape_of_block(chunk: Chunk, count: int, unit: Unit) -> tuple[int, ...]:
    """The shape in which a method is given a block."""
    shape = chunk.tensor.reference.shape
    if unit == "element" or not shape:
        return (count,)
    if unit == "row":
        return (math.ceil(count / max(shape[-1], 1)), shape[-1])
    return shape


class ContentHash:
    """xxh3 of a tensor's bytes in segments of a fixed grid, fed in order from a segment's start."""

    def __init__(self, element_bytes: int) -> None:
        self._segment_bytes = CHUNK_ELEMENTS * element_bytes
        self._hash = xxhash.xxh3_128()
        self._filled = 0
        self._digests: list[bytes] = []

    def update(self, stored: np.ndarray) -> None:
        """Feed the bytes of the next elements, which may cross a segment's end."""
        data = stored.data
        while len(data):
            taken = min(len(data), self._segment_bytes - self._filled)
            self._hash.update(data[:taken])
            self._filled += taken
            data = data[taken:]
            if self._filled == self._segment_bytes:
                self._close()

    def _close(self) -> None:
        self._digests.append(self._hash.digest())
        self._hash = xxhash.xxh3_128()
        self._filled = 0

    def digests(self) -> tuple[bytes, ...]:
        """One digest for each segment that was begun."""
        if self._filled:
            self._close()
        return tuple(self._digests)
