"""Run independent tasks on Ray: largest first, results in the order asked for, one clear error."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.flight import Flight, Watch
from cluster.storage_errors import naming_storage_errors
from cluster.task_options import MAX_RETRIES, TaskOptions
from cluster.task_report import ReportPaths, reporting
from nan_merge.errors import NanMergeError
from nan_merge.tasks import Task

Report = Callable[[int, Any], None]


@ray.remote
def _call(
    function: Callable[..., Any], arguments: tuple[Any, ...], paths: ReportPaths | None
) -> tuple[Any, float]:
    started = time.monotonic()
    with _on_a_worker(paths):
        result = function(*arguments)
    return result, time.monotonic() - started


@ray.remote(num_returns="streaming")
def _stream(
    function: Callable[..., Iterator[Any]], arguments: tuple[Any, ...], paths: ReportPaths | None
) -> Iterator[Any]:
    with _on_a_worker(paths):
        # Not `yield from`: Ray resumes with `send`, which plain iterators lack.
        for item in function(*arguments):  # noqa: UP028
            yield item


@contextmanager
def _on_a_worker(paths: ReportPaths | None) -> Generator[None]:
    if not ray.get_gpu_ids():
        # A task that was given no GPU must not take one that belongs to others.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with naming_storage_errors(), reporting(paths):
        yield


def run_tasks(
    tasks: Sequence[Task],
    on_done: Report | None = None,
    options: TaskOptions | None = None,
    watch: Watch | None = None,
) -> list[Any]:
    """Run tasks on the session's workers.

    Args:
        tasks: What to run.
        on_done: Called with a task's place and result whenever one ends.
        options: What a task needs, and how often it is tried.
        watch: How to follow them.

    Returns:
        Their results, in the order of ``tasks``.

    Raises:
        NanMergeError: The first error of a task; or a worker that died, a storage that failed or
            a task that was stuck again and again. The other tasks are cancelled.
    """
    results: list[Any] = [None] * len(tasks)
    flight = Flight(_call, tasks, options or TaskOptions(), watch or Watch())
    with cancelling(flight):
        while not flight.is_over:
            for attempt in flight.wait():
                place = attempt.place
                try:
                    results[place], seconds = get(attempt.reference, tasks[place].label)
                except Exception as error:
                    flight.fail(attempt, error)
                    continue
                flight.finish(attempt, seconds)
                if on_done is not None:
                    on_done(place, results[place])
    return results


def run_streams(
    tasks: Sequence[Task],
    on_item: Report,
    options: TaskOptions | None = None,
    watch: Watch | None = None,
) -> None:
    """Run generator functions on the session's workers.

    Args:
        tasks: Tasks whose function is a generator function.
        on_item: Called with a task's place and each thing that it yields, as it comes; a task
            that is sent again yields from its beginning.
        options: What a task needs, and how often it is tried.
        watch: How to follow them; every thing that is yielded is a sign of life, too.

    Raises:
        NanMergeError: As in `run_tasks`.
    """
    flight = Flight(_stream, tasks, options or TaskOptions(), watch or Watch())
    with cancelling(flight):
        while not flight.is_over:
            for attempt in flight.wait():
                try:
                    item = get(next(attempt.reference), tasks[attempt.place].label)
                except StopIteration:
                    flight.finish(attempt)
                except Exception as error:
                    flight.fail(attempt, error)
                else:
                    flight.heard_of(attempt)
                    on_item(attempt.place, item)


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


@contextmanager
def cancelling(flight: Flight) -> Generator[None]:
    """Cancel what is still under way when the block ends early, so that no worker goes on."""
    try:
        yield
    except BaseException:
        flight.cancel()
        raise
