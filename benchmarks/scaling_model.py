"""A model of time: tasks of known cost on workers that share storage and networks.

A discrete-event simulation. Between two events (a task starts, a task ends) every running task
goes on at a constant speed: as fast as its worker alone could, unless tasks together ask more of
the storage, or of a node's network, than that gives; then all who share it slow down in the same
proportion. The engine reads, computes and writes in turn within a task, so a task that nobody
disturbs takes the sum of the three. Stages follow each other: the next begins when the last task
of one has ended, as in the engine, whose driver waits for all records of a stage.

Every second is put down to what limits it. Busy workers that wait for something shared put their
part of it down to that; what is left goes to their own work as far as all workers are busy, and to
the longest shard as far as some have nothing left to do.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

OWN = ("dispatch", "read", "compute", "write")
"""What a worker does itself: more workers help."""
STORAGE_READ, STORAGE_WRITE, NETWORK = "storage read", "storage write", "network"
SHARED = (STORAGE_READ, STORAGE_WRITE, NETWORK)
"""What workers wait for: more of them do not help."""
LONGEST, SERIAL = "longest shard", "serial part"
"""Workers without work while the last tasks of a stage run, or while only the driver works."""
RESOURCES = (*OWN, *SHARED, LONGEST, SERIAL)


@dataclass(frozen=True)
class Work:
    """One task.

    Attributes:
        read: Bytes from storage.
        write: Bytes to storage.
        compute: Seconds of one worker.
    """

    read: float
    write: float
    compute: float


@dataclass(frozen=True)
class Stage:
    """Tasks that may run at the same time.

    Attributes:
        label: What they do.
        works: The tasks.
        serial: Seconds that the driver takes beside them, while no worker has work.
    """

    label: str
    works: tuple[Work, ...]
    serial: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """What the tasks run on; rates in bytes per second.

    Attributes:
        workers: How many.
        workers_per_node: How many share a node's network.
        worker_read: What one worker alone reads.
        worker_write: What one worker alone writes.
        storage_read: What the storage gives to all together.
        storage_write: What the storage takes from all together.
        node_network: What one node moves in each direction.
        dispatch: Seconds to hand a task to a worker.
    """

    workers: int
    workers_per_node: int
    worker_read: float
    worker_write: float
    storage_read: float
    storage_write: float
    node_network: float
    dispatch: float

    @property
    def nodes(self) -> int:
        """Nodes that the workers need."""
        return -(-self.workers // self.workers_per_node)


@dataclass(frozen=True)
class Outcome:
    """What the simulation found.

    Attributes:
        seconds: From beginning to end.
        by_stage: Stage's label -> seconds; stages of one label are added up.
        shares: Resource -> share of the time that it limits, all RESOURCES; they add up to 1.
    """

    seconds: float
    by_stage: dict[str, float]
    shares: dict[str, float]

    @property
    def limit(self) -> str:
        """The resource that limits most of the time."""
        return max(self.shares, key=lambda name: self.shares[name])


def simulate(stages: Sequence[Stage], cluster: Cluster) -> Outcome:
    """Run stages one after the other."""
    spent = dict.fromkeys(RESOURCES, 0.0)
    by_stage: dict[str, float] = {}
    for stage in stages:
        seconds = _run_stage(stage.works, cluster, spent) + stage.serial
        spent[SERIAL] += stage.serial
        by_stage[stage.label] = by_stage.get(stage.label, 0.0) + seconds
    total = sum(spent.values())
    shares = {name: value / total if total else 0.0 for name, value in spent.items()}
    return Outcome(sum(by_stage.values()), by_stage, shares)


class _Running:
    """The tasks that run now, one per busy worker, as columns."""

    def __init__(self, cluster: Cluster) -> None:
        count = cluster.workers
        self.node = np.arange(count) % cluster.nodes  # workers are spread over the nodes
        self.left = np.zeros(count)  # share of the task that is left; 0 for an idle worker
        self.parts = np.zeros((count, len(OWN)))  # seconds of each kind, alone
        self.read, self.write = np.zeros(count), np.zeros(count)

    def start(self, worker: int, work: Work, cluster: Cluster) -> None:
        self.left[worker] = 1.0
        self.parts[worker] = (
            cluster.dispatch,
            work.read / cluster.worker_read,
            work.compute,
            work.write / cluster.worker_write,
        )
        self.read[worker], self.write[worker] = work.read, work.write


def _run_stage(works: Sequence[Work], cluster: Cluster, spent: dict[str, float]) -> float:
    """Seconds of one stage; adds to ``spent`` what limited them."""
    # Largest first, as the engine sends them.
    queue = [(-work.read - work.write, place, work) for place, work in enumerate(works)]
    heapq.heapify(queue)
    running = _Running(cluster)
    now = 0.0
    while True:
        for worker in np.flatnonzero(running.left == 0.0):
            if not queue:
                break
            running.start(int(worker), heapq.heappop(queue)[2], cluster)
        busy = np.flatnonzero(running.left > 0.0)
        if not len(busy):
            return now
        alone = 1.0 / np.maximum(running.parts[busy].sum(axis=1), 1e-12)
        speed, waits_for = _speeds(running, busy, alone, cluster)
        step = float((running.left[busy] / speed).min())
        share_busy = len(busy) / cluster.workers
        _account(spent, running.parts[busy], alone, speed, waits_for, step, share_busy)
        left = running.left[busy] - speed * step
        running.left[busy] = np.where(left < 1e-9, 0.0, left)
        now += step


def _speeds(
    running: _Running, busy: np.ndarray, alone: np.ndarray, cluster: Cluster
) -> tuple[np.ndarray, np.ndarray]:
    """Speed of every busy task, and the index in SHARED of what slows it down, or -1.

    All speeds rise in proportion until something shared is full; those who use it stay at that,
    the others rise on.
    """
    node = running.node[busy]
    read, write = running.read[busy] * alone, running.write[busy] * alone
    everyone = np.zeros(len(busy), dtype=int)
    groups = (  # what is shared: its index, who shares it, what they ask, what there is
        (0, everyone, read, cluster.storage_read),
        (1, everyone, write, cluster.storage_write),
        (2, node, read, cluster.node_network),
        (2, node, write, cluster.node_network),
    )
    level = np.ones(len(busy))
    waits_for = np.full(len(busy), -1)
    while True:
        fullest = (1.0 - 1e-12, -1, None)
        for index, group, demand, capacity in groups:
            open_, size = waits_for < 0, group.max() + 1
            rising = np.bincount(group, demand * open_, size)
            fixed = np.bincount(group, demand * level * ~open_, size)
            with np.errstate(divide="ignore", invalid="ignore"):
                reach = np.where(rising > 0, (capacity - fixed) / rising, np.inf)
            place = int(reach.argmin())
            if reach[place] < fullest[0]:
                fullest = (float(reach[place]), index, open_ & (group == place) & (demand > 0))
        if fullest[2] is None:
            return alone * level, waits_for
        level[fullest[2]] = max(fullest[0], 1e-9)
        waits_for[fullest[2]] = fullest[1]


def _account(
    spent: dict[str, float],
    parts: np.ndarray,
    alone: np.ndarray,
    speed: np.ndarray,
    waits_for: np.ndarray,
    step: float,
    share_busy: float,
) -> None:
    """Put ``step`` seconds down to what limited them."""
    waited = (1.0 - speed / alone) * step
    for index, name in enumerate(SHARED):
        spent[name] += float(waited[waits_for == index].sum()) / len(alone)
    worked = (parts * (speed * step)[:, None]).sum(axis=0) / len(alone)
    for name, seconds in zip(OWN, worked, strict=True):
        spent[name] += float(seconds) * share_busy
    spent[LONGEST] += float(worked.sum()) * (1.0 - share_busy)
