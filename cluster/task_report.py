"""What a running task tells its driver, through a file in a folder that both see.

The first line of the file says where the task runs; every further line is a number of bytes that
were done since the line before. A worker that dies and is replaced by Ray begins with another
first line. Lines are written by calls of `nan_merge.tasks.report_progress` alone, no thread writes
any, so a task that hangs falls silent. The file is opened for every line: on NFS that is what
makes it visible elsewhere.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from nan_merge.tasks import progress_to

MIN_BYTES, MIN_SECONDS = 1 << 24, 1.0  # of progress between two lines


@dataclass(frozen=True)
class ReportPaths:
    """Files of one attempt at a task; ``log`` may be None."""

    progress: str
    log: str | None = None


@dataclass
class TaskReport:
    """What the driver read from a task's file so far.

    Attributes:
        starts: Where it was begun, each time it was: "node", "host" and "pid".
        num_bytes: Done since it was last begun.
        lines: Lines read; they grow with every sign of life.
    """

    starts: list[dict[str, str | int]] = field(default_factory=list)
    num_bytes: int = 0
    lines: int = 0
    _position: int = 0

    def read(self, path: Path) -> bool:
        """Read what is new; whether anything was."""
        try:
            with path.open("rb") as file:
                file.seek(self._position)
                data = file.read()
        except OSError:  # not begun, or the storage is away for a moment
            return False
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.splitlines():
            self._add(line)
        return bool(whole)

    def _add(self, line: bytes) -> None:
        self.lines += 1
        with suppress(ValueError):  # two lines at once on a file system that does not append
            content = json.loads(line)
            if isinstance(content, dict):
                self.starts.append(content)
                self.num_bytes = 0
            else:
                self.num_bytes += int(content)


@contextmanager
def reporting(paths: ReportPaths | None) -> Generator[None]:
    """On the worker: let the task report to its file and print to its log."""
    if paths is None:
        yield
        return
    import ray  # here, because `nan-merge status` reads reports without it

    start = {
        "node": ray.get_runtime_context().get_node_id(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
    _append(paths.progress, json.dumps(start), os.O_CREAT)
    writer = _Writer(paths.progress)
    with progress_to(writer.add), _printing_to(paths.log):
        yield
    writer.flush()


class _Writer:
    """Writes lines of bytes, not too many. Threads count together, forked processes each."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._start()

    def _start(self) -> None:
        self._pid, self._pending, self._last = os.getpid(), 0, time.monotonic()
        self._lock = Lock()

    def add(self, num_bytes: int) -> None:
        if self._pid != os.getpid():
            self._start()
        with self._lock:
            self._pending += num_bytes
            if self._pending >= MIN_BYTES or time.monotonic() - self._last >= MIN_SECONDS:
                self.flush()

    def flush(self) -> None:
        if self._pending:
            _append(self._path, str(self._pending))
            self._pending, self._last = 0, time.monotonic()


def _append(path: str, line: str, flags: int = 0) -> None:
    # Only the first line makes the file: a driver that gave the attempt up has removed it.
    with suppress(OSError):  # a report that is lost costs a number on a screen, not the task
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | flags, 0o644)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)


@contextmanager
def _printing_to(path: str | None) -> Generator[None]:
    """Send this process's standard output and error to a file; an empty one is removed."""
    if path is None:
        yield
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError:
        yield
        return
    kept = _redirect(descriptor)
    os.close(descriptor)
    try:
        yield
    finally:
        _restore(kept)
        with suppress(OSError):
            if Path(path).stat().st_size == 0:
                Path(path).unlink()


def _redirect(descriptor: int) -> list[int]:
    kept = [os.dup(number) for number in (1, 2)]
    for number in (1, 2):
        os.dup2(descriptor, number)
    return kept


def _restore(kept: list[int]) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    for number, descriptor in zip((1, 2), kept, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
