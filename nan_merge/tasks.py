"""Independent pieces of work, and the plainest way to run them: one after the other.

Whoever runs them elsewhere (see ``cluster``) takes the same list and returns the same results in
the same order; what they compute does not depend on where or in which order they run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def run_serially(tasks: Sequence[Task]) -> list[Any]:
    """Run every task here, in order, and return their results."""
    return [task.function(*task.arguments) for task in tasks]
