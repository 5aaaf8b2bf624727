"""A process that holds one model at a time, as the driver sees it and from the inside."""

from __future__ import annotations

import gc
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.model_queue import ActorResources, ModelJob, ModelQueue
from cluster.reaper import watch_this_process
from cluster.storage_errors import naming_storage_errors


@ray.remote(max_restarts=0, max_task_retries=0)
class _ModelActor:
    """Holds one model. Calls on an actor run in the order in which they were sent."""

    def __init__(self) -> None:
        watch_this_process(uuid.uuid4().hex)
        self._model: Any = None

    def introduce(self) -> dict[str, Any]:
        """Where this actor is: pid, machine, and Ray's id of its node."""
        node = ray.get_runtime_context().get_node_id()
        return {"pid": os.getpid(), "host": socket.gethostname(), "node": node}

    def load(self, load: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
        """Make a model; returns the seconds that it took."""
        started = time.monotonic()
        if callable(close := getattr(self._model, "close", None)):
            close()
        self._model = None  # give its memory back before the next model needs it
        gc.collect()
        with naming_storage_errors():
            self._model = load(*arguments)
        return time.monotonic() - started

    def work(self, work: Callable[[Any, Any], Any], item: Any) -> tuple[Any, float]:
        """What the work on an item returned, and the seconds that it took."""
        started = time.monotonic()
        with naming_storage_errors():
            return work(self._model, item), time.monotonic() - started


@dataclass(eq=False)
class Call:
    """One call that an actor has not answered yet.

    Attributes:
        reference: Ray's, of the answer.
        place: The item, by its place in the job's items; None for the loading of a model.
    """

    reference: Any
    place: int | None


@dataclass(eq=False)
class ModelActor:
    """The driver's side of an actor.

    Attributes:
        number: Counts the actors of a pool.
        resources: What it owns.
        handle: Ray's.
        group: Its placement group, if its model spans nodes.
        calls: What it has not answered yet, in the order in which it works.
        promised: The model that it is being started for; None once it is there.
        queue: The model that it serves.
        helps: Whether it came to the help of other actors.
        num_models: How many models it has been given.
        last_model_was_alone: Whether its last model wanted a process of its own.
        last_sign: When it last answered or was given work after a pause; monotonic seconds.
    """

    number: int
    resources: ActorResources
    handle: Any
    group: PlacementGroup | None
    calls: deque[Call] = field(default_factory=deque[Call])
    promised: ModelQueue | None = None
    queue: ModelQueue | None = None
    helps: bool = False
    num_models: int = 0
    last_model_was_alone: bool = False
    last_sign: float = field(default_factory=time.monotonic)

    @property
    def is_starting(self) -> bool:
        """Whether Ray still looks for a place for it."""
        return self.promised is not None

    @property
    def is_free(self) -> bool:
        """Whether it is there and has nothing to do."""
        return not self.is_starting and not self.calls

    @property
    def serves(self) -> ModelQueue:
        """The model that it serves or is being started for."""
        queue = self.queue or self.promised
        assert queue is not None, "only an actor with a model is asked for it"
        return queue

    @property
    def doing(self) -> str:
        """What its oldest call is about, for people."""
        if self.is_starting:
            return "starting"
        place = self.calls[0].place
        job = self.serves.job
        return "loading it" if place is None else f"working on {job.name_of(job.items[place])}"

    def can_serve(self, job: ModelJob) -> bool:
        """Whether this process will do for a model."""
        alone = self.num_models == 0 or not (self.last_model_was_alone or job.own_process)
        return alone and self.resources == job.resources

    def load(self, queue: ModelQueue) -> None:
        """Send for a model."""
        job = queue.job
        self.queue, self.helps = queue, queue.serving > 0
        queue.serving += 1
        queue.most_actors = max(queue.most_actors, queue.serving)
        self.num_models += 1
        self.last_model_was_alone = job.own_process
        self._send(self.handle.load.remote(job.load, job.arguments), None)

    def leave(self) -> None:
        """Serve, or be promised to, no model any more."""
        if self.queue is not None:
            self.queue.serving -= 1
        if self.promised is not None:
            self.promised.promised -= 1
        self.queue = self.promised = None

    def work(self, place: int) -> None:
        """Send an item of the model that it serves."""
        assert self.queue is not None, "a model is loaded before there is work for it"
        job = self.queue.job
        self._send(self.handle.work.remote(job.work, job.items[place]), place)

    def _send(self, reference: Any, place: int | None) -> None:
        if not self.calls:
            self.last_sign = time.monotonic()
        self.calls.append(Call(reference, place))

    def stop(self) -> None:
        """End it at once; what it started is ended by its watcher."""
        with suppress(RayError):  # whatever ended it before
            ray.kill(self.handle)
            if self.group is not None:
                remove_placement_group(self.group)


def start_actor(number: int, queue: ModelQueue) -> ModelActor:
    """Ask Ray for an actor that can serve a model; it is there when its first call is answered."""
    resources = queue.job.resources
    group = placement_group(list(map(dict, resources.bundles))) if resources.bundles else None
    options: dict[str, Any] = {
        "num_cpus": resources.num_cpus,
        "num_gpus": resources.num_gpus,
        "memory": resources.memory,
        "resources": dict(resources.custom),
    }
    if group is not None:
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
        )
    remote: Any = _ModelActor
    handle = remote.options(**options).remote()
    actor = ModelActor(number, resources, handle, group, promised=queue)
    queue.promised += 1
    actor.calls.append(Call(handle.introduce.remote(), None))
    return actor
