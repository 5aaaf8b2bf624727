"""Run merges and scoring on Ray, on this machine, to hold the simulator's predictions against."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scaling_measure import (
    NUM_MODELS,
    REPEATS,
    SHARD_BYTES,
    classify,
    family,
    recipe_of,
)
from benchmarks.scaling_model import Cluster, Stage, Work, simulate
from benchmarks.scaling_work import cluster_of, merge_stages, model_of
from benchmarks.synthetic_llama import shapes
from nan_merge.merge import merge_checkpoint
from nan_merge.tasks import Task

NUM_TINY = 200
SCORED = 2_000  # images of one scoring task


@dataclass(frozen=True)
class Setting:
    """Ray on this machine: workers, and nodes that they are spread over."""

    name: str
    workers: int
    nodes: int


SETTINGS = (
    Setting("1 worker", 1, 1),
    Setting("2 workers", 2, 1),
    Setting("2 nodes of 1 worker", 2, 2),
)


@contextmanager
def ray_on(setting: Setting) -> Generator[None]:
    """A Ray of its own, on the loopback address, which ends with the block."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from cluster.session import ray_session

    if setting.nodes == 1:
        with ray_session("local", setting.workers):
            yield
        return
    from ray.cluster_utils import Cluster as RayCluster

    cluster = RayCluster()
    try:
        for _ in range(setting.nodes):
            cluster.add_node(num_cpus=setting.workers // setting.nodes)
        with ray_session(cluster.address):
            yield
    finally:
        cluster.shutdown()


def nothing() -> None:
    """The smallest task."""


def measure_dispatch() -> float:
    """Seconds to hand a task to a worker that is there already."""
    with ray_on(SETTINGS[0]):
        from cluster.tasks import run_tasks

        tasks = [Task("nothing", nothing, (), 0)] * NUM_TINY
        run_tasks(tasks)  # starts the worker
        return min(_measure(lambda: run_tasks(tasks))) / NUM_TINY


def validate(folder: Path, profile: dict[str, Any]) -> list[dict[str, Any]]:
    """Predicted and measured seconds of merges and of scoring in every setting."""
    data = family(folder, "0.3b")
    rows: list[dict[str, Any]] = []
    for setting in SETTINGS:
        with ray_on(setting):
            rows += _validate_setting(setting, data, profile)
    return rows


def _validate_setting(
    setting: Setting, data: Path, profile: dict[str, Any]
) -> list[dict[str, Any]]:
    from cluster.tasks import run_tasks

    cluster = _here(profile, setting)
    rows: list[dict[str, Any]] = []
    run_tasks([Task("warm", classify, (1,), 0)] * setting.workers * 2)
    model = model_of(shapes("0.3b"), NUM_MODELS, SHARD_BYTES)
    for name, method in profile["methods"].items():
        measured = _measure(lambda name=name: _merge(data, name, run_tasks))
        rows.append(_row(setting, name, merge_stages(model, method), cluster, measured))
    tasks = [Task("score", classify, (SCORED,), 0)] * 4
    measured = _measure(lambda: run_tasks(tasks))
    costs = profile["samples"]
    work = Work(0.0, 0.0, costs["image_fixed_seconds"] + SCORED * costs["image_seconds"])
    stages = [Stage("score", (work,) * len(tasks))]
    rows.append(_row(setting, "scoring images", stages, cluster, measured))
    return rows


def _here(profile: dict[str, Any], setting: Setting) -> Cluster:
    storage = profile["storage"]
    own = {"read": storage["all_read"], "write": storage["all_write"]}
    return cluster_of(profile, own, setting.workers, setting.workers)


def _merge(data: Path, name: str, run_tasks: Any) -> None:
    output = data / "merged"
    shutil.rmtree(output, ignore_errors=True)
    merge_checkpoint(recipe_of(data, name), output, run_tasks)


def _measure(call: Callable[[], Any]) -> list[float]:
    """Seconds of REPEATS calls, in order."""
    found: list[float] = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return found


def _row(
    setting: Setting,
    what: str,
    stages: list[Stage],
    cluster: Cluster,
    runs: list[float],
) -> dict[str, Any]:
    outcome, measured = simulate(stages, cluster), statistics.median(runs)
    return {
        "setting": setting.name,
        "what": what,
        "predicted": outcome.seconds,
        "measured": measured,
        "runs": runs,
        "error": outcome.seconds / measured - 1,
        "limit": outcome.limit,
    }
