"""Run pieces of work on the cores of this machine, on processes or on threads.

Threads for the compiled kernels, which release the interpreter's lock for as long as they work;
processes for torch's operators, which on small blocks take and release it all the time.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from nan_merge.aligned import aligned_empty
from nan_merge.errors import NanMergeError
from nan_merge.lazy_torch import torch
from nan_merge.safetensors_file import BlockReader

if TYPE_CHECKING:
    from torch import Tensor

Result = TypeVar("Result")


@dataclass
class _Worker:
    """What one process or thread works with while it goes through chunks."""

    reader: BlockReader = field(default_factory=BlockReader)
    scratch: dict[int, Tensor] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


_here = threading.local()  # .worker: that of the thread that asks
# What forked processes find in their copy of this process's memory.
_inherited: tuple[Callable[[Any], Any], Sequence[Any]] | None = None
_forking = threading.Lock()


def _worker() -> _Worker:
    worker = getattr(_here, "worker", None)
    assert worker is not None, "only inside run_chunks or run_on_threads"
    return worker


def current_reader() -> BlockReader:
    """The reader of the process or thread that works on chunks now."""
    return _worker().reader


def scratch(slot: int, count: int) -> Tensor:
    """Flat float32 memory of a slot, which the next call with that slot gives out again."""
    kept = _worker().scratch
    if slot not in kept or kept[slot].numel() < count:
        kept[slot] = torch.empty(count, dtype=torch.float32)
    return kept[slot][:count]


def scratch_array(use: str, shape: tuple[int, ...], dtype: type[Any]) -> np.ndarray:
    """Memory for a use, which the next call for that use and shape gives out again."""
    kept = _worker().arrays
    found = kept.get(use)
    if found is None or found.shape != shape or found.dtype != dtype:
        found = kept[use] = aligned_empty(shape, dtype)
    return found


def run_chunks(
    function: Callable[[Any], Result], chunks: Sequence[Any], workers: int
) -> Iterator[Result]:
    """Call ``function`` on every chunk; results come in order, the first error ends it.

    On processes: torch's operators on blocks take microseconds, and threads would spend as long
    again waiting for the interpreter's lock (docs/performance.md). They are forked and so start in
    milliseconds, with everything that ``function`` refers to. torch computes on one thread in
    each: a sum that is split in one way only has one value.

    Raises:
        NanMergeError: If a process died, and whatever ``function`` raises.
    """
    with one_torch_thread():
        if workers <= 1 or len(chunks) <= 1 or not sys.platform.startswith("linux"):
            yield from _run_here(function, chunks)
        else:
            yield from _run_forked(function, chunks, min(workers, len(chunks)))


def run_on_threads(
    function: Callable[[Any], Result],
    chunks: Sequence[Any],
    workers: int,
    *,
    with_torch: bool = False,
) -> Iterator[Result]:
    """Call ``function`` on every chunk; results come in order, the first error ends it.

    Args:
        function: Does its work in compiled kernels, reads and writes.
        chunks: Its arguments, one call each.
        workers: Threads.
        with_torch: Whether it also calls torch, which then computes on one thread in each.
    """
    with one_torch_thread() if with_torch else nullcontext():
        if workers <= 1 or len(chunks) <= 1:
            yield from _run_here(function, chunks)
        else:
            yield from _run_threads(function, chunks, min(workers, len(chunks)))


def _run_here(function: Callable[[Any], Result], chunks: Sequence[Any]) -> Iterator[Result]:
    before = getattr(_here, "worker", None)
    worker = _here.worker = _Worker()
    try:
        for chunk in chunks:
            yield function(chunk)
    finally:
        worker.reader.__exit__()
        _here.worker = before


def _run_threads(
    function: Callable[[Any], Result], chunks: Sequence[Any], workers: int
) -> Iterator[Result]:
    started: list[_Worker] = []

    def start() -> None:
        _here.worker = _Worker()
        started.append(_here.worker)

    pool = ThreadPoolExecutor(workers, "nan-merge", initializer=start)
    try:
        futures = deque(pool.submit(function, chunk) for chunk in chunks)
        while futures:  # a result that was given out must not be kept
            yield futures.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        for worker in started:
            worker.reader.__exit__()


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # Die with the parent, however it dies: PR_SET_PDEATHSIG of prctl(2).
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    _here.worker = _Worker()


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
