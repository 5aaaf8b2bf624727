"""Model actors: share models and their shards of samples among processes that may die.

An actor serves one model for as long as that model has work, holds a bounded number of its shards,
and takes the next model when it is done: first one that nobody serves, the largest first; then it
helps with what is left of another. An actor that is lost is replaced, and does its unfinished
shards again. Nothing of a backend is known here: a job brings the function that makes its model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import ray
from ray.exceptions import RayError, RayTaskError

from cluster.model_actor import ModelActor, start_actor
from cluster.model_queue import (
    MAX_IN_FLIGHT,
    ActorResources,
    ModelJob,
    choose_queue,
    largest_first,
)
from cluster.storage_errors import StorageError
from nan_merge.errors import EvaluationError

__all__ = ["ActorResources", "ModelJob", "serve_models"]

MAX_LOSSES = 3
"""A shard that an actor was lost over this often is an error; so is a model that loses this many
actors, for each that served it at once, with no shard finished in between."""
STALL_SECONDS = 1800.0
START_SECONDS = 300.0
_POLL_SECONDS = 1.0

OnResult = Callable[[ModelJob, Any, Any], None]
OnEvent = Callable[[str, dict[str, Any]], None]


def serve_models(
    jobs: Sequence[ModelJob],
    num_actors: int,
    on_result: OnResult,
    on_event: OnEvent | None = None,
    *,
    stall_seconds: float = STALL_SECONDS,
    start_seconds: float = START_SECONDS,
) -> None:
    """Work through jobs on model actors.

    Args:
        jobs: One per model.
        num_actors: Most actors at once.
        on_result: Called with the job, the item and what its work returned, as they come; once
            for each item, whatever dies.
        on_event: Called with a name and details: "actor started", "model loading", "model
            loaded", "stolen" (an actor helps with a model that others serve), "shard done",
            "actor died", "actor stalled", "actor stopped".
        stall_seconds: An actor that gives no answer for so long is stopped and replaced; if the
            same shard stalls again, it is an error.
        start_seconds: How long Ray may look for a place for an actor while nothing else goes on.

    Raises:
        NanMergeError: The first error of a job as it was raised; it is not tried again.
        EvaluationError: If actors are lost again and again, stall twice over one shard, or find no
            place. What was finished by then has been given to ``on_result``.
    """
    pool = _Pool(jobs, num_actors, on_result, on_event or (lambda _name, _details: None))
    pool.stall_seconds, pool.start_seconds = stall_seconds, start_seconds
    try:
        pool.run()
    finally:
        pool.stop()


class _Pool:
    """The actors of one call of `serve_models`, and what they are doing."""

    stall_seconds: float
    start_seconds: float

    def __init__(
        self, jobs: Sequence[ModelJob], num_actors: int, on_result: OnResult, on_event: OnEvent
    ) -> None:
        self._queues = largest_first(jobs)
        self._num_actors = num_actors
        self._on_result, self._on_event = on_result, on_event
        self._actors: list[ModelActor] = []
        self._num_started = 0
        self._num_left = sum(len(queue.unsent) for queue in self._queues)
        self._last_answer = time.monotonic()

    def run(self) -> None:
        """Until every item has its result."""
        while self._num_left:
            for actor in list(self._actors):
                self._give_work(actor)
            self._fit_number_of_actors()
            self._wait()
            self._check_for_stalls()

    def stop(self) -> None:
        """End all actors."""
        for actor in self._actors:
            actor.stop()
        self._actors.clear()

    # --- handing out -------------------------------------------------------------------------

    def _give_work(self, actor: ModelActor) -> None:
        if actor.is_free and not (actor.queue and actor.queue.unsent):
            self._give_model(actor)
        queue = actor.queue
        is_loading = any(call.place is None for call in actor.calls)
        if queue is not None and not is_loading:
            while queue.unsent and len(actor.calls) < MAX_IN_FLIGHT:
                actor.work(queue.take(actor.helps))

    def _give_model(self, actor: ModelActor) -> None:
        actor.leave()
        # A model for which another actor is on its way waits for that one, if this one will not do.
        queues = [each for each in self._queues if actor.can_serve(each.job) or not each.promised]
        queue = choose_queue(queues, count_promised=False)
        if queue is not None and actor.can_serve(queue.job):
            actor.load(queue)
            self._tell("stolen" if actor.helps else "model loading", actor)
        elif choose_queue(self._queues, count_promised=False) is not None:
            # What it holds may be what an actor that will do is waiting for.
            self._tell("actor stopped", actor, reason="what is left needs another one")
            self._drop(actor)
        # Else it stays: a model may turn out slow, or lose an actor.

    def _fit_number_of_actors(self) -> None:
        """Start actors that would have work; stop those that would come too late for any."""
        if choose_queue(self._queues, count_promised=False) is None:
            for actor in [actor for actor in self._actors if actor.is_starting]:
                self._drop(actor)
        while len(self._actors) < self._num_actors:
            queue = choose_queue(self._queues, count_promised=True)
            if queue is None:
                break
            self._actors.append(start_actor(self._num_started, queue))
            self._num_started += 1

    # --- answers -----------------------------------------------------------------------------

    def _wait(self) -> None:
        """Take every answer that is there, at least one if one comes soon."""
        asked = {actor.calls[0].reference: actor for actor in self._actors if actor.calls}
        if not asked:
            raise AssertionError("work is left, and no actor has any")
        poll = min(_POLL_SECONDS, self.stall_seconds / 4)
        ray.wait(list(asked), timeout=poll)
        ready: list[Any] = ray.wait(list(asked), num_returns=len(asked), timeout=0)[0]
        for reference in ready:
            self._answer(asked[reference])

    def _answer(self, actor: ModelActor) -> None:
        call = actor.calls[0]
        try:
            value: Any = ray.get(call.reference)
        except RayTaskError as error:
            # Ray's own error carries the worker's traceback in its text; only `--debug` shows it.
            cause = error.cause if isinstance(error.cause, BaseException) else error
            if isinstance(cause, StorageError):  # loading the model again is the wait
                self._lose(actor, f"storage: {cause.what}", cause)
                return
            if type(cause).__name__ in actor.serves.job.replace_on:
                # An engine's last words have line breaks; a reason is one line.
                words = " ".join(f"{type(cause).__name__}: {cause}".split())
                self._lose(actor, words[:300].rstrip(": "))
                return
            self._fail(cause, error)
        except RayError as error:
            # If an actor cannot even start, the end of Ray's text is the reason.
            why = f": {str(error).splitlines()[-1][:200]}" if actor.is_starting else ""
            self._lose(actor, f"{type(error).__name__}{why}")
            return
        actor.calls.popleft()
        actor.last_sign = self._last_answer = time.monotonic()
        if actor.is_starting:
            self._tell("actor started", actor, **value)
            actor.leave()
        elif call.place is None:
            actor.serves.note_load(value)
            self._tell("model loaded", actor, seconds=value)
        else:
            self._finish(actor, call.place, *value)

    def _finish(self, actor: ModelActor, place: int, result: Any, seconds: float) -> None:
        job = actor.serves.job
        actor.serves.note_shard(place, seconds)
        self._num_left -= 1
        self._on_result(job, job.items[place], result)
        self._tell("shard done", actor, shard=job.name_of(job.items[place]), seconds=seconds)

    # --- losses ------------------------------------------------------------------------------

    def _lose(self, actor: ModelActor, reason: str, storage: StorageError | None = None) -> None:
        """Replace an actor that died, or that the storage failed. Too often, and it is an error."""
        queue, place, doing = actor.serves, actor.calls[0].place, actor.doing
        self._tell("actor died", actor, doing=doing, reason=reason)
        self._take_back(actor)
        queue.deaths += 1
        losses = queue.deaths // queue.most_actors
        if place is not None:
            queue.shard_deaths[place] += 1
            losses = max(losses, queue.shard_deaths[place])
        if losses >= MAX_LOSSES and storage is not None:
            self._fail(
                EvaluationError(
                    f"The storage failed the actor that serves {queue.job.label} {losses} times, "
                    f"at last while {doing}: {storage.what}. {storage.original} What is finished "
                    "is kept: run the same command again when the storage is back."
                ),
                storage.original,
            )
        if losses >= MAX_LOSSES:
            self._fail(
                EvaluationError(
                    f"The actor that serves {queue.job.label} was lost {losses} times, at last "
                    f"while {doing} ({reason}). Often memory ran out: use fewer workers "
                    "(`cluster.num_workers`) or smaller batches, then run the same command again; "
                    "what was finished is kept."
                )
            )

    def _check_for_stalls(self) -> None:
        now = time.monotonic()
        if all(actor.is_starting or actor.is_free for actor in self._actors):
            self._check_starts(now)
        for actor in list(self._actors):
            at_work = actor.calls and not actor.is_starting
            if at_work and now - actor.last_sign > self.stall_seconds:
                self._stop_stalled(actor)

    def _stop_stalled(self, actor: ModelActor) -> None:
        queue, place, doing = actor.serves, actor.calls[0].place, actor.doing
        self._tell("actor stalled", actor, doing=doing, seconds=self.stall_seconds)
        self._take_back(actor)
        queue.stalls[place] += 1
        if queue.stalls[place] > 1:
            self._fail(
                EvaluationError(
                    f"The actor that serves {queue.job.label} gave no answer for "
                    f"{self.stall_seconds:g} s while {doing}, and neither did the one that "
                    "replaced it. Allow it more time with `stall_seconds` if the model is that "
                    "slow, then run the same command again; what was finished is kept."
                )
            )

    def _take_back(self, actor: ModelActor) -> None:
        places = [call.place for call in actor.calls if call.place is not None]
        actor.serves.give_back(places)
        self._drop(actor)

    def _check_starts(self, now: float) -> None:
        for actor in self._actors:
            if not actor.is_starting:
                continue
            since = max(actor.last_sign, self._last_answer)
            if now - since > self.start_seconds:
                there = {name: n for name, n in ray.cluster_resources().items() if ":" not in name}
                self._fail(
                    EvaluationError(
                        f"Ray found no place for the actor of {actor.serves.job.label} in "
                        f"{self.start_seconds:g} s: it asks for {actor.resources}, and the cluster "
                        f"has {there} in all. Ask for less, or add a node that has it."
                    )
                )

    def _fail(self, error: BaseException, cause: BaseException | None = None) -> NoReturn:
        """Raise; what other actors have finished by now is kept."""
        for actor in self._actors:
            while actor.calls and ray.wait([actor.calls[0].reference], timeout=0)[0]:
                call = actor.calls.popleft()
                try:
                    value: Any = ray.get(call.reference)
                except RayError:
                    break
                if call.place is not None:
                    self._finish(actor, call.place, *value)
        raise error from cause

    def _drop(self, actor: ModelActor) -> None:
        actor.stop()
        actor.leave()
        self._actors.remove(actor)

    def _tell(self, event: str, actor: ModelActor, **details: Any) -> None:
        queue = actor.queue or actor.promised
        model = {"model": queue.job.label} if queue is not None else {}
        self._on_event(event, {"actor": actor.number, **model, **details})
