"""The event log of a run: `events.jsonl` in its folder, one JSON object a line.

Every event has `time` (seconds since 1970), `event` (its name) and what belongs to it:

    run begun       pid, host, name, seed
    stage begun     stage, total, unit
    task begun      stage, task, place, attempt, report, node, host, pid
    task done       stage, task, place, attempt, report, seconds, bytes
    task again      stage, task, place, attempt, report, reason, wait: it will be sent again
    task failed     stage, task, place, attempt, report, error
    stage done      stage, seconds
    stage failed    stage, seconds, error
    run done        seconds
    run failed      seconds, error

    actor started   stage, actor, model, node, host, pid
    model loading   stage, actor, model; "stolen" if others serve it already
    model loaded    stage, actor, model, seconds
    shard done      stage, actor, model, shard, seconds, samples
    actor died      stage, actor, model, doing, reason: it is replaced
    actor stalled   stage, actor, model, doing, seconds: it is replaced
    actor stopped   stage, actor, model, reason: what is left needs another one

Runs in one folder are appended one after the other.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipelines.masking import hide_passwords

EVENTS_NAME = "events.jsonl"


class EventLog:
    """Appends events to a file; without a file it forgets them."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path

    def write(self, event: str, /, **details: Any) -> None:
        """Append one event."""
        if self._path is None:
            return
        safe = {k: hide_passwords(v) if isinstance(v, str) else v for k, v in details.items()}
        line = json.dumps({"time": round(time.time(), 3), "event": event, **safe}, default=str)
        # A line that cannot be written (a full disk) must not stop what it tells of.
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    @contextmanager
    def run(self, name: str, seed: int) -> Generator[None]:
        """Tell when a run begins and how it ends."""
        self._end_torn_line()
        self.write("run begun", pid=os.getpid(), host=socket.gethostname(), name=name, seed=seed)
        with self._told("run"):
            yield

    @contextmanager
    def stage(self, name: str, total: int, unit: str) -> Generator[None]:
        """Tell when a stage begins and how it ends."""
        self.write("stage begun", stage=name, total=total, unit=unit)
        with self._told("stage", stage=name):
            yield

    @contextmanager
    def _told(self, what: str, **details: Any) -> Generator[None]:
        started = time.monotonic()

        def seconds() -> float:
            return round(time.monotonic() - started, 3)

        try:
            yield
        except BaseException as error:
            text = str(error) or type(error).__name__
            if isinstance(error, KeyboardInterrupt):
                text = "interrupted by Ctrl-C"
            self.write(f"{what} failed", **details, seconds=seconds(), error=text)
            raise
        self.write(f"{what} done", **details, seconds=seconds())

    def _end_torn_line(self) -> None:
        """A driver that was killed may have left half a line, which must not swallow the next."""
        with suppress(OSError):
            if self._path is not None and not self._path.read_bytes().endswith(b"\n"):
                with self._path.open("a", encoding="utf-8") as file:
                    file.write("\n")


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Events in order; lines that are torn or not understood are left out.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and isinstance(event.get("event"), str):
                    yield event
