"""Actors that each serve one model at a time, for as long as that model has work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from cluster.tasks import get


@dataclass(frozen=True)
class ModelJob:
    """All work for one model.

    Attributes:
        label: The model's name, for people.
        load: Makes the model, on the actor.
        arguments: Of ``load``; paths, never tensors.
        work: Called on the actor with the model and one item.
        items: What to work on, one call each.
    """

    label: str
    load: Callable[..., Any]
    arguments: tuple[Any, ...]
    work: Callable[[Any, Any], Any]
    items: Sequence[Any]


@ray.remote(num_cpus=1)
class _ModelActor:
    """Holds one model. Calls on an actor run in the order in which they were sent."""

    def __init__(self) -> None:
        self._model: Any = None

    def load(self, load: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._model = None  # give its memory back before the next model needs it
        self._model = load(*arguments)

    def work(self, loaded: None, work: Callable[[Any, Any], Any], item: Any) -> Any:
        # `loaded` is what `load` returned: if that failed, Ray hands on its error instead.
        return work(self._model, item)


def serve_models(
    jobs: Sequence[ModelJob], num_actors: int, on_result: Callable[[ModelJob, Any, Any], None]
) -> None:
    """Share jobs among actors; each takes the next model when it is done with one.

    Args:
        jobs: One per model.
        num_actors: Most actors at once.
        on_result: Called with the job, the item and what its work returned, as they come.

    Raises:
        NanMergeError: The first error of a job, or an actor that died.
    """
    pending = list(jobs)[::-1]
    actors: list[Any] = [_ModelActor.remote() for _ in range(min(num_actors, len(jobs)))]
    running: dict[Any, tuple[Any, ModelJob, Any, bool]] = {}

    def send_next(actor: Any) -> None:
        if pending:
            job = pending.pop()
            loaded = actor.load.remote(job.load, job.arguments)
            for left, item in zip(reversed(range(len(job.items))), job.items, strict=True):
                reference = actor.work.remote(loaded, job.work, item)
                running[reference] = (actor, job, item, left == 0)

    for actor in actors:
        send_next(actor)
    try:
        while running:
            done, _ = ray.wait(list(running))
            for reference in done:
                actor, job, item, is_last = running.pop(reference)
                on_result(job, item, get(reference, f"evaluate {job.label}", retries=0))
                if is_last:
                    send_next(actor)
    finally:
        for actor in actors:
            ray.kill(actor)
