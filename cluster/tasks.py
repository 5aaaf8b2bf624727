"""Run independent tasks on Ray: largest first, results in the order asked for, one clear error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.session import worker_limit
from nan_merge.errors import NanMergeError
from nan_merge.tasks import Task

MAX_RETRIES = 2  # of a task whose worker died; an error of the task itself is never retried
Report = Callable[[int, Any], None]


@ray.remote(num_cpus=1, max_retries=MAX_RETRIES)
def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return function(*arguments)


@ray.remote(num_cpus=1, max_retries=MAX_RETRIES, num_returns="streaming")
def _stream(function: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> Iterator[Any]:
    # Not `yield from`: Ray resumes with `send`, which plain iterators lack.
    for item in function(*arguments):  # noqa: UP028
        yield item


def run_tasks(tasks: Sequence[Task], on_done: Report | None = None) -> list[Any]:
    """Run tasks on the session's workers.

    Args:
        tasks: What to run.
        on_done: Called with a task's place and result whenever one ends.

    Returns:
        Their results, in the order of ``tasks``.

    Raises:
        NanMergeError: The first error of a task, or a worker that died again and again. The
            other tasks are cancelled.
    """
    results: list[Any] = [None] * len(tasks)
    flight = _Flight(_call, tasks)
    with cancelling(flight.waiting):
        while flight.waiting:
            done, flight.waiting[:] = ray.wait(flight.waiting)
            for reference in done:
                place = flight.places[reference]
                results[place] = get(reference, tasks[place].label)
                if on_done is not None:
                    on_done(place, results[place])
            flight.send()
    return results


def run_streams(tasks: Sequence[Task], on_item: Report) -> None:
    """Run generator functions on the session's workers.

    Args:
        tasks: Tasks whose function is a generator function.
        on_item: Called with a task's place and each thing that it yields, as it comes.

    Raises:
        NanMergeError: As in `run_tasks`.
    """
    flight = _Flight(_stream, tasks)
    with cancelling(flight.waiting):
        while flight.waiting:
            ready: list[Any] = ray.wait(flight.waiting, num_returns=1, fetch_local=False)[0]
            for stream in ready:
                try:
                    reference: Any = next(stream)
                except StopIteration:
                    flight.waiting.remove(stream)
                    flight.send()
                    continue
                place = flight.places[stream]
                on_item(place, get(reference, tasks[place].label))


class _Flight:
    """Tasks under way: the costliest first, never more at once than the session allows."""

    def __init__(self, remote: Any, tasks: Sequence[Task]) -> None:
        self._remote, self._queue = remote, largest_first(tasks)[::-1]
        self._limit = worker_limit() or len(tasks)
        self.waiting: list[Any] = []
        self.places: dict[Any, int] = {}
        self.send()

    def send(self) -> None:
        """Send tasks while there is room."""
        while self._queue and len(self.waiting) < self._limit:
            place, task = self._queue.pop()
            reference = self._remote.remote(task.function, task.arguments)
            self.places[reference] = place
            self.waiting.append(reference)


def largest_first(tasks: Sequence[Task]) -> list[tuple[int, Task]]:
    """Tasks with their places, the costliest first, so that the last to end is a small one."""
    return sorted(enumerate(tasks), key=lambda item: -item[1].cost)


def get(reference: Any, label: str, retries: int = MAX_RETRIES) -> Any:
    """The value behind a reference; errors come as the task raised them.

    Args:
        reference: What Ray gave for the task.
        label: What the task does, for people.
        retries: How often Ray starts it again if its worker dies.

    Raises:
        NanMergeError: If a worker died more often than it may.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        # Ray's own error carries the worker's traceback in its text; only `--debug` shows it.
        if isinstance(error.cause, BaseException):
            raise error.cause from error
        raise
    except RayError as error:
        again = f"It was started again up to {retries} times. " if retries else ""
        raise NanMergeError(
            f"The worker that ran `{label}` died ({type(error).__name__}). {again}Often memory "
            "ran out: use fewer workers (`cluster.num_workers`), then run the same command again "
            "to continue."
        ) from error


class cancelling:
    """Cancel what is still waiting when the block ends early, so that no worker goes on."""

    def __init__(self, waiting: list[Any]) -> None:
        self._waiting = waiting

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for reference in self._waiting:
                ray.cancel(reference, force=True)
