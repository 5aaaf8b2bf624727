"""Cut tensors into pieces of work, and run them on processes.

A *block* is the unit of arithmetic: small enough that all that is made of it stays in the
processor's cache. A *chunk* is the unit of work and of hashing: a run of blocks of one tensor,
on a fixed grid, that one process works through. Neither depends on the number of workers,
so neither do sums and hashes over them.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
import xxhash
from torch import Tensor

from nan_merge.errors import NanMergeError
from nan_merge.methods.method import Unit
from nan_merge.plan import AlignedTensor
from nan_merge.safetensors_file import BlockReader

# Part of the definition of every sum: another number would change last bits of norms and so,
# now and then, of a merged weight.
BLOCK_ELEMENTS = 1 << 16
RUN_ELEMENTS = 1 << 20
CHUNK_ELEMENTS = 1 << 24

Result = TypeVar("Result")
Block = tuple[Tensor | None, list[Tensor]]  # of the base, if there is one, and of T models


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

    def read(self) -> list[Tensor]:
        """The run of every input in its own type, flat; valid until the next run is read."""
        inputs = self.chunk.tensor.inputs
        return [
            current_reader().read(info, self.start, self.count, slot)
            for slot, info in enumerate(inputs)
        ]

    def read_blocks(self) -> Iterator[Block]:
        """Read, and go through the blocks."""
        raw = self.read()
        for first, last in self.blocks():
            yield self.floats(raw, first, last)

    def floats(self, raw: Sequence[Tensor], first: int, last: int) -> Block:
        """Elements ``first`` to ``last`` of what `read` gave, as float32, ours to change.

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

    def update(self, piece: Tensor) -> None:
        """Feed the next elements, which may cross a segment's end."""
        data = piece.contiguous().view(-1).view(torch.uint8).numpy().data
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


@dataclass
class _Worker:
    """What one process works with while it goes through chunks."""

    reader: BlockReader
    scratch: dict[int, Tensor]


_worker: _Worker | None = None
# What forked processes find in their copy of this process's memory.
_inherited: tuple[Callable[[Any], Any], Sequence[Any]] | None = None
_forking = threading.Lock()


def current_reader() -> BlockReader:
    """The reader of the process that works on chunks now."""
    assert _worker is not None, "only inside run_chunks"
    return _worker.reader


def scratch(slot: int, count: int) -> Tensor:
    """Flat float32 memory of a slot, which the next call with that slot gives out again."""
    assert _worker is not None, "only inside run_chunks"
    kept = _worker.scratch
    if slot not in kept or kept[slot].numel() < count:
        kept[slot] = torch.empty(count, dtype=torch.float32)
    return kept[slot][:count]


def run_chunks(
    function: Callable[[Any], Result], chunks: Sequence[Any], workers: int
) -> Iterator[Result]:
    """Call ``function`` on every chunk; results come in order, the first error ends it.

    Processes and not threads: torch's operators on blocks take microseconds, and threads would
    spend as long again waiting for the interpreter's lock (docs/performance.md). They are forked
    and so start in milliseconds, with everything that ``function`` refers to. torch computes on
    one thread in each: a sum that is split in one way only has one value.

    Raises:
        NanMergeError: If a process died, and whatever ``function`` raises.
    """
    with one_torch_thread():
        if workers <= 1 or len(chunks) <= 1 or not sys.platform.startswith("linux"):
            yield from _run_here(function, chunks)
        else:
            yield from _run_forked(function, chunks, min(workers, len(chunks)))


def _run_here(function: Callable[[Any], Result], chunks: Sequence[Any]) -> Iterator[Result]:
    global _worker
    before, _worker = _worker, _Worker(BlockReader(), {})
    try:
        for chunk in chunks:
            yield function(chunk)
    finally:
        _worker.reader.__exit__()
        _worker = before


def _run_forked(
    function: Callable[[Any], Result], chunks: Sequence[Any], workers: int
) -> Iterator[Result]:
    global _inherited
    with _forking:
        _inherited = (function, chunks)
        pool = ProcessPoolExecutor(
            workers, get_context("fork"), initializer=_start_worker, initargs=(os.getpid(),)
        )
        results = pool.map(_call_inherited, range(len(chunks)))
    try:
        yield from results
    except BrokenProcessPool as error:
        raise NanMergeError(
            "A worker process died; often memory ran out. Run the same command again: it "
            "continues where it stood."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        _inherited = None


def _start_worker(parent: int) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # Die with the parent, however it dies: PR_SET_PDEATHSIG of prctl(2).
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    _worker = _Worker(BlockReader(), {})


def _call_inherited(place: int) -> Any:
    assert _inherited is not None
    function, chunks = _inherited
    return function(chunks[place])


@contextmanager
def one_torch_thread() -> Generator[None]:
    """Let torch compute on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
