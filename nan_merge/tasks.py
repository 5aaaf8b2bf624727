"""Independent pieces of work, and the plainest way to run them: one after the other.

Whoever runs them elsewhere (see ``cluster``) takes the same list and returns the same results in
the same order; what they compute does not depend on where or in which order they run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """A call into this library that reads and writes files; it carries paths, never tensors.

    Attributes:
        label: What it does, for people.
        function: A module-level function.
        arguments: Its arguments, small enough to send.
        cost: Bytes that it reads; larger ones should start first.
    """

    label: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    cost: int


RunTasks = Callable[[Sequence[Task]], list[Any]]

_report: Callable[[int], None] | None = None


def run_serially(tasks: Sequence[Task]) -> list[Any]:
    """Run every task here, in order, and return their results."""
    return [task.function(*task.arguments) for task in tasks]


def report_progress(num_bytes: int) -> None:
    """Say from inside a task that further input bytes are done; costs nothing if nobody asks.

    It is also the task's sign of life: a task that has not called it for long is taken for stuck,
    so it is called where work was done and from nowhere else.
    """
    if _report is not None:
        _report(num_bytes)


@contextmanager
def progress_to(report: Callable[[int], None]) -> Generator[None]:
    """Hand what `report_progress` is told in this block to ``report``.

    Processes that are forked inside the block report to it, too.
    """
    global _report
    before, _report = _report, report
    try:
        yield
    finally:
        _report = before
