"""What is left to do for each model, and which model a free actor should take. Pure; no Ray."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_IN_FLIGHT = 2
"""Shards that an actor holds at once: the one at work, and one so that it never waits."""


def one(item: Any) -> float:
    """The cost of a shard where all shards cost the same."""
    return 1.0


@dataclass(frozen=True)
class ActorResources:
    """What an actor owns of its node for as long as it lives.

    GPUs and placement groups are handed to Ray as they are asked for; neither was run on a GPU yet.

    Attributes:
        num_cpus: CPU cores.
        num_gpus: GPUs: the tensor-parallel size of a model that fits one node.
        memory: Bytes of memory that Ray sets aside; None for no reservation.
        custom: Further resources by Ray's names for them.
        bundles: For a model that spans nodes, what it owns on each of them, by Ray's names
            (``({"GPU": 8}, {"GPU": 8})``). They are held as a placement group on as few nodes as
            possible; the actor itself sits in the first one, and what it starts through Ray in
            any of them.
    """

    num_cpus: float = 1
    num_gpus: float = 0
    memory: int | None = None
    custom: Mapping[str, float] = field(default_factory=dict[str, float])
    bundles: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True, eq=False)
class ModelJob:
    """All work for one model.

    Attributes:
        label: The model's name, for people.
        load: Makes the model, on the actor. If the model has a method ``close``, it is called
            before the actor turns to another model.
        arguments: Of ``load``; paths, never tensors.
        work: Called on the actor with the model and one item.
        items: Shards of samples; one call each. Neighbours go to the same actor.
        resources: What an actor needs to serve this model.
        own_process: Whether an actor serves nothing else before and after; for engines that do
            not give all of their memory back.
        cost_of: Expected work of an item, positive, in a unit that all jobs of a pool share.
        name_of: An item's name, for people.
        replace_on: Names of exceptions which mean that the actor is lost, not that the work is
            wrong: the actor is replaced as if it had died.
    """

    label: str
    load: Callable[..., Any]
    arguments: tuple[Any, ...]
    work: Callable[[Any, Any], Any]
    items: Sequence[Any]
    resources: ActorResources = ActorResources()
    own_process: bool = False
    cost_of: Callable[[Any], float] = one
    name_of: Callable[[Any], str] = str
    replace_on: tuple[str, ...] = ("MemoryError", "OutOfMemoryError")


class ModelQueue:
    """The shards of one model that are not sent yet, and how fast it loads and works.

    Attributes:
        job: Whose shards.
        unsent: Places in ``job.items``; the model's first actor takes from the left, actors that
            help it from the right, so that neighbours stay together.
        serving: Actors that have loaded the model or are loading it.
        promised: Actors that are being started for it.
        most_actors: Most actors that served it at once.
        deaths: Actors lost since the model's last finished shard.
        shard_deaths: How often an actor was lost over a shard.
        stalls: How often an actor was stopped over a shard because nothing came of it; key None
            is the loading.
    """

    def __init__(self, job: ModelJob) -> None:
        self.job = job
        self.costs = [float(job.cost_of(item)) for item in job.items]
        if min(self.costs, default=1.0) <= 0:
            raise ValueError(f"{job.label}: the cost of every item must be positive")
        self.unsent = deque(range(len(job.items)))
        self.serving = 0
        self.promised = 0
        self.most_actors = 1
        self.deaths = 0
        self.shard_deaths: Counter[int] = Counter()
        self.stalls: Counter[int | None] = Counter()
        self._load_seconds: float | None = None
        self._done_cost = self._done_seconds = 0.0

    def take(self, helping: bool) -> int:
        """The next shard to send, by its place in ``job.items``."""
        return self.unsent.pop() if helping else self.unsent.popleft()

    def give_back(self, places: Sequence[int]) -> None:
        """Put shards that were lost on the way at the head of the queue."""
        self.unsent.extendleft(reversed(places))

    def note_load(self, seconds: float) -> None:
        """Remember how long loading took; the longest counts."""
        self._load_seconds = max(seconds, self._load_seconds or 0.0)

    def note_shard(self, place: int, seconds: float) -> None:
        """Remember that a shard is finished, and how long it took."""
        self.deaths = 0
        self._done_cost += self.costs[place]
        self._done_seconds += seconds

    @property
    def unsent_cost(self) -> float:
        """Expected work of what is not sent yet."""
        return sum(self.costs[place] for place in self.unsent)

    def remaining_seconds(self) -> float | None:
        """How long one actor would take for what is not sent yet; None before a shard is done."""
        if not self._done_cost:
            return None
        return self.unsent_cost * self._done_seconds / self._done_cost

    def is_worth_a_load(self, num_actors: int) -> bool:
        """Whether a further actor beside ``num_actors`` would end this model's work sooner.

        With r seconds of work left, a actors and l seconds for a load, a helper shortens r / a to
        (r + l) / (a + 1); it is worth its load if r > a l. Until both are measured, it is if
        more is left than the others can hold at once.
        """
        remaining = self.remaining_seconds()
        if remaining is None or self._load_seconds is None:
            return len(self.unsent) > MAX_IN_FLIGHT * num_actors
        return remaining > num_actors * self._load_seconds


def largest_first(jobs: Sequence[ModelJob]) -> list[ModelQueue]:
    """Queues of the jobs that have work, the most expected work first."""
    queues = [ModelQueue(job) for job in jobs if job.items]
    return sorted(queues, key=lambda queue: -queue.unsent_cost)


def choose_queue(queues: Sequence[ModelQueue], *, count_promised: bool) -> ModelQueue | None:
    """The model that a free actor should load.

    One that no actor serves comes first, by expected work; then the one with the most work left
    for each of its actors, if that is worth another load.

    Args:
        queues: From `largest_first`.
        count_promised: Whether an actor that is being started counts like one that is there.
    """
    waiting = [queue for queue in queues if queue.unsent]

    def actors_of(queue: ModelQueue) -> int:
        return queue.serving + (queue.promised if count_promised else 0)

    def left_for_each(queue: ModelQueue) -> float:
        remaining = queue.remaining_seconds()
        return (queue.unsent_cost if remaining is None else remaining) / actors_of(queue)

    unserved = [queue for queue in waiting if not actors_of(queue)]
    if unserved:
        return max(unserved, key=lambda queue: queue.unsent_cost)
    worth = [queue for queue in waiting if queue.is_worth_a_load(actors_of(queue))]
    return max(worth, key=left_for_each, default=None)
