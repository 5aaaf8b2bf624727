"""Run independent tasks on Ray: largest first, results in the order asked for, one clear error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError, WorkerCrashedError

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
    places = {_call.remote(task.function, task.arguments): i for i, task in largest_first(tasks)}
    results: list[Any] = [None] * len(tasks)
    waiting = list(places)
    with cancelling(waiting):
        while waiting:
            done, waiting[:] = ray.wait(waiting)
            for reference in done:
                place = places[reference]
                results[place] = get(reference, tasks[place].label)
                if on_done is not None:
                    on_done(place, results[place])
    return results


def run_streams(tasks: Sequence[Task], on_item: Report) -> None:
    """Run generator functions on the session's workers.

    Args:
        tasks: Tasks whose function is a generator function.
        on_item: Called with a task's place and each thing that it yields, as it comes.

    Raises:
        NanMergeError: As in `run_tasks`.
    """
    places: dict[Any, int] = {
        _stream.remote(task.function, task.arguments): i for i, task in largest_first(tasks)
    }
    waiting = list(places)
    with cancelling(waiting):
        while waiting:
            ready: list[Any] = ray.wait(waiting, num_returns=1, fetch_local=False)[0]
            for stream in ready:
                try:
                    reference: Any = next(stream)
                except StopIteration:
                    waiting.remove(stream)
                    continue
                on_item(places[stream], get(reference, tasks[places[stream]].label))


def largest_first(tasks: Sequence[Task]) -> list[tuple[int, Task]]:
    """Tasks with their places, the costliest first, so that the last to end is a small one."""
    return sorted(enumerate(tasks), key=lambda item: -item[1].cost)


def get(reference: Any, label: str) -> Any:
    """The value behind a reference; errors come as the task raised them.

    Raises:
        NanMergeError: If a worker died more often than it may.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, NanMergeError):
            raise cause from None
        raise
    except (WorkerCrashedError, RayError) as error:
        raise NanMergeError(
            f"The worker that ran `{label}` died ({type(error).__name__}). It was started again "
            f"up to {MAX_RETRIES} times. Often memory ran out: use fewer workers "
            "(`cluster.num_workers`), then run the same command again to continue."
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
