"""Tasks under way on Ray: sent largest first, watched, sent again where that can help.

What is tried again, and how often:

- a task whose worker or node is lost: by Ray itself, `MAX_RETRIES` times;
- an error of the storage: after each of `TaskOptions.storage_waits_seconds`;
- a task that falls silent for `TaskOptions.stall_seconds`: once.

Any other error ends everything at once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.session import why_no_place, worker_limit
from cluster.storage_errors import StorageError
from cluster.task_options import TaskFolders, TaskOptions
from cluster.task_report import ReportPaths, TaskReport
from nan_merge.errors import NanMergeError
from nan_merge.tasks import Task

POLL_SECONDS, PLACE_POLL_SECONDS = 1.0, 10.0
# Calls to cancel one task, a second apart.
CANCEL_ROUNDS = 3
OnEvent = Callable[[str, dict[str, Any]], None]
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Watch:
    """How a caller follows a flight.

    Attributes:
        folders: Where tasks report; None and they do not, and none can be found to be stuck.
        on_event: Called with a name and details: "task begun", "task done", "task again" (it was
            lost, stuck, or the storage failed) and "task failed".
        on_progress: Called with the bytes that are done and the number of tasks at work.
    """

    folders: TaskFolders | None = None
    on_event: OnEvent = lambda _name, _details: None
    on_progress: OnProgress = lambda _num_bytes, _num_running: None


@dataclass(eq=False)
class Attempt:
    """One sending of a task; Ray may start it several times.

    Attributes:
        place: The task's, in the list of all.
        number: From 1.
        reference: Ray's.
        sent: When; monotonic seconds.
        last_sign: When it was last heard of; monotonic seconds.
        paths: Its files, if it has any.
        report: What they said so far.
        is_heard: Whether anything came from it.
        starts_told: How many of its starts were told as events.
    """

    place: int
    number: int
    reference: Any
    sent: float
    last_sign: float
    paths: ReportPaths | None
    report: TaskReport = field(default_factory=TaskReport)
    is_heard: bool = False
    starts_told: int = 0


class Flight:
    """Sends tasks, waits for what comes back, and decides what is sent again."""

    def __init__(
        self, remote: Any, tasks: Sequence[Task], options: TaskOptions, watch: Watch
    ) -> None:
        self._remote = remote.options(**options.for_ray())
        self._tasks, self._options, self._watch = tasks, options, watch
        self._queue = [place for place, _ in largest_first(tasks)][::-1]
        self._later: list[tuple[float, int]] = []
        self._limit = worker_limit() or max(len(tasks), 1)
        self._flying: dict[Any, Attempt] = {}
        self._sendings = [0] * len(tasks)
        self._storage_errors = [0] * len(tasks)
        self._stalls = [0] * len(tasks)
        self._done_bytes = 0
        self._looked = 0.0
        self._has_place = time.monotonic()  # when that was last known

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return not (self._flying or self._queue or self._later)

    def wait(self) -> list[Attempt]:
        """Send what can be sent, and return attempts that have something to fetch."""
        self._send()
        if not self._flying:
            time.sleep(max(0.0, min(when for when, _ in self._later) - time.monotonic()))
            return []
        # A stream is ready when its next item is; it must not be fetched.
        ready, _ = ray.wait(
            list(self._flying),
            num_returns=1,
            timeout=POLL_SECONDS,
            fetch_local=not self._streams(),
        )
        self._look()
        return [self._flying[reference] for reference in ready if reference in self._flying]

    def _streams(self) -> bool:
        return any(isinstance(each, ray.ObjectRefGenerator) for each in self._flying)

    def heard_of(self, attempt: Attempt) -> None:
        """Note that an item of a stream came."""
        attempt.last_sign, attempt.is_heard = time.monotonic(), True

    def finish(self, attempt: Attempt, seconds: float | None = None) -> None:
        """Note that an attempt gave all its results; ``seconds`` as its worker measured them."""
        self._land(attempt)
        task = self._tasks[attempt.place]
        self._done_bytes += task.cost
        passed = time.monotonic() - attempt.sent if seconds is None else seconds
        details = {"seconds": round(passed, 3), "bytes": task.cost}
        self._tell("task done", attempt, **details)
        self._show()

    def fail(self, attempt: Attempt, error: Exception) -> None:
        """Send the task again later if that can help.

        Raises:
            NanMergeError: If it cannot help any more; or the error itself.
        """
        self._land(attempt)
        place, waits = attempt.place, self._options.storage_waits_seconds
        if not isinstance(error, StorageError):
            self._tell("task failed", attempt, error=str(error))
            raise error
        count = self._storage_errors[place]
        self._storage_errors[place] += 1
        if count >= len(waits):
            self._tell("task failed", attempt, error=str(error.original))
            raise NanMergeError(
                f"The storage failed {count + 1} times under `{self._tasks[place].label}`, at last "
                f"with: {error.what}. {error.original} What is finished is kept: run the same "
                "command again when the storage is back."
            ) from error.original
        self._tell("task again", attempt, reason=f"storage: {error.what}", wait=waits[count])
        self._later.append((time.monotonic() + waits[count], place))

    def cancel(self) -> None:
        """End everything that is under way."""
        pending = list(self._flying)
        with suppress(RayError, RuntimeError):  # Ray itself may be what is gone
            # Ray may lose a call for a task that is just being handed to a worker: ask again.
            for _ in range(CANCEL_ROUNDS if pending else 0):
                for reference in pending:
                    ray.cancel(reference, force=True)
                _, pending = ray.wait(
                    pending, num_returns=len(pending), timeout=1.0, fetch_local=False
                )
                if not pending:
                    break
        for attempt in list(self._flying.values()):
            self._land(attempt)

    def _send(self) -> None:
        now = time.monotonic()
        due = [place for when, place in self._later if when <= now]
        self._later = [item for item in self._later if item[0] > now]
        self._queue += due
        while self._queue and len(self._flying) < self._limit:
            place = self._queue.pop()
            self._sendings[place] += 1
            task, number = self._tasks[place], self._sendings[place]
            paths = self._paths(task, place, number)
            reference = self._remote.remote(task.function, task.arguments, paths)
            self._flying[reference] = Attempt(place, number, reference, now, now, paths)

    def _paths(self, task: Task, place: int, number: int) -> ReportPaths | None:
        if (folders := self._watch.folders) is None:
            return None
        safe = re.sub(r"[^\w.]+", "-", task.label)[:80]
        name = f"{safe}-{place:05d}-{number}"
        log = str(folders.logs / f"{name}.log") if folders.logs else None
        return ReportPaths(str(folders.progress / name), log)

    def _land(self, attempt: Attempt) -> None:
        """The attempt is over: read its last words, forget it."""
        self._flying.pop(attempt.reference, None)
        if attempt.paths is not None:
            path = Path(attempt.paths.progress)
            attempt.report.read(path)
            self._tell_starts(attempt)
            with suppress(OSError):  # the storage is away for a moment; the file tells nothing
                path.unlink(missing_ok=True)

    def _look(self) -> None:
        """Read the reports, at most once in a while; find what is stuck."""
        now = time.monotonic()
        if not self._flying or now - self._looked < POLL_SECONDS:
            return
        self._looked = now
        for attempt in self._begun():
            assert attempt.paths is not None
            if attempt.report.read(Path(attempt.paths.progress)):
                self.heard_of(attempt)
                self._tell_starts(attempt)
        self._show()
        for attempt in list(self._flying.values()):
            self._cancel_if_stuck(attempt, now)
        self._refuse_to_wait_for_nothing(now)

    def _begun(self) -> list[Attempt]:
        """Attempts that have a file: one listing of the folder instead of many looks into it."""
        if (folders := self._watch.folders) is None:
            return []
        try:
            there = {path.name for path in folders.progress.iterdir()}
        except OSError:  # the storage is away for a moment: nobody is heard
            return []
        flying = list(self._flying.values())
        return [a for a in flying if a.paths and Path(a.paths.progress).name in there]

    def _cancel_if_stuck(self, attempt: Attempt, now: float) -> None:
        limit, place = self._options.stall_seconds, attempt.place
        if limit is None or not (attempt.is_heard or self._stalls[place]):
            return  # a task that waits for a free worker is not stuck
        # Unless it was stuck before and its worker, still stuck, keeps the place.
        patience = limit if attempt.is_heard else max(limit, self._options.place_seconds)
        if now - attempt.last_sign < patience:
            return
        ray.cancel(attempt.reference, force=True)
        self._land(attempt)
        self._stalls[place] += 1
        if self._stalls[place] > 1:
            error = (
                f"`{self._tasks[place].label}` (task {place + 1} of {len(self._tasks)}) gave no "
                f"sign of life for {limit:g} s, twice{_where(attempt)}. What is finished is kept: "
                "look at the storage and that machine, then run the same command again; raise "
                "`cluster.stall_seconds` if such a task may take so long."
            )
            self._tell("task failed", attempt, error=error)
            raise NanMergeError(error)
        self._tell("task again", attempt, reason=f"no sign of life for {limit:g} s", wait=0)
        self._queue.append(place)

    def _refuse_to_wait_for_nothing(self, now: float) -> None:
        """End if nothing is at work and no node could run a task, now and for long."""
        signs = [attempt.last_sign for attempt in self._flying.values()]
        self._has_place = max([self._has_place, *signs])
        if now - self._has_place < min(PLACE_POLL_SECONDS, self._options.place_seconds):
            return
        if not (why := why_no_place(self._options)):
            self._has_place = now
        elif now - self._has_place >= self._options.place_seconds:
            raise NanMergeError(
                f"No node of the cluster could run `{self._tasks[0].label}` for "
                f"{self._options.place_seconds:g} s: {why}. What is finished is kept. Lower what "
                "a task needs (`cluster`), or add nodes (a local Ray has as many CPUs as "
                "`cluster.num_workers`), and run the same command again."
            )

    def _tell_starts(self, attempt: Attempt) -> None:
        for start in attempt.report.starts[attempt.starts_told :]:
            if attempt.starts_told:
                self._tell("task again", attempt, reason="its worker or node was lost", wait=0)
            attempt.starts_told += 1
            self._tell("task begun", attempt, **start)

    def _tell(self, name: str, attempt: Attempt, **details: Any) -> None:
        common = {"task": self._tasks[attempt.place].label, "place": attempt.place}
        if attempt.paths is not None:
            common |= {"attempt": attempt.number, "report": Path(attempt.paths.progress).name}
        self._watch.on_event(name, common | details)

    def _show(self) -> None:
        attempts = [attempt for attempt in self._flying.values() if attempt.is_heard]
        # Some tasks read their input more than once.
        costs = [(attempt, self._tasks[attempt.place].cost) for attempt in attempts]
        running = sum(min(attempt.report.num_bytes, cost) for attempt, cost in costs)
        self._watch.on_progress(self._done_bytes + running, len(attempts))


def largest_first(tasks: Sequence[Task]) -> list[tuple[int, Task]]:
    """Tasks with their places, the costliest first, so that the last to end is a small one."""
    return sorted(enumerate(tasks), key=lambda item: -item[1].cost)


def _where(attempt: Attempt) -> str:
    if not attempt.report.starts:
        return ""
    start = attempt.report.starts[-1]
    return f", the last time on {start['host']}, process {start['pid']}"
