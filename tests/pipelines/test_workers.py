"""How a run's workers are asked, watched and shown, on a local Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import pipelines.progress
from cluster.actors import ModelJob, _Pool
from nan_merge.errors import EvaluationError
from nan_merge.tasks import Task, progress_to
from pipelines.cluster_config import Cluster, StageResources
from pipelines.events import EVENTS_NAME, EventLog, read_events
from pipelines.progress import RunProgress
from pipelines.status import read_status
from pipelines.workers import Workers
from tests.kept_ray import KeptRay

STALL_SECONDS = 6.0


@pytest.fixture(scope="module", autouse=True)
def shared_ray(kept_ray: KeptRay) -> None:
    """Nothing is shared here: each test starts its own."""
    kept_ray.close()


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """What is printed, every step of it."""
    monkeypatch.setattr(pipelines.progress, "LOG_SECONDS", -1.0)
    return StringIO()


@pytest.fixture
def workers(tmp_path: Path, shown: StringIO) -> Iterator[Workers]:
    """Two local workers."""
    events = EventLog(tmp_path / EVENTS_NAME)
    events.write("run begun", pid=1, host="here", name="mine", seed=0)
    config = Cluster(num_workers=2, stall_seconds=STALL_SECONDS)
    with Workers(config, RunProgress(Console(file=shown, width=200), events), tmp_path) as found:
        yield found


def hang_once(folder: str) -> str:
    marker = Path(folder) / "hung"
    if not marker.exists():
        marker.touch()
        time.sleep(600)
    return "done"


def load(label: str) -> str:
    return label


def answer(model: str, item: int) -> str:
    time.sleep(0.2)
    return f"{model}{item}"


@pytest.mark.ray
def test_a_task_of_no_bytes_that_falls_silent_is_done_again(workers: Workers, tmp_path: Path):
    task = Task("text tower", hang_once, (str(tmp_path),), 1)
    assert workers.run_tasks("Zero-shot heads", [task]) == ["done"]
    events = [event["event"] for event in read_events(tmp_path / EVENTS_NAME)]
    assert events.count("task again") == 1


@pytest.mark.ray
def test_actors_and_samples_are_shown_and_told(workers: Workers, tmp_path: Path, shown: StringIO):
    jobs = [ModelJob(name, load, (name,), answer, [1, 2, 3, 4]) for name in ("a", "b")]
    results: list[str] = []
    midway: list[Any] = []

    def note(job: ModelJob, item: Any, result: Any) -> None:
        results.append(result)
        midway.append(read_status(tmp_path).stages[0])

    workers.serve_models("Evaluating", jobs, note, lambda item: 10)
    assert sorted(results) == sorted(f"{name}{n}" for name in "ab" for n in (1, 2, 3, 4))
    lines = [line for line in shown.getvalue().splitlines() if "samples" in line]
    assert any("2 actors" in line for line in lines)
    assert any(line.startswith("Evaluating: 80/80 samples") for line in lines)
    names = {task.task for stage in midway for task in stage.running}
    assert names == {"a", "b"}
    assert all(task.host and task.pid for stage in midway for task in stage.running)
    (stage,) = read_status(tmp_path).stages
    assert (stage.state, stage.done, stage.total, stage.running) == ("done", 80, 80, [])


@pytest.mark.ray
def test_an_actor_that_this_machine_has_no_place_for_is_refused_before_any_work(tmp_path: Path):
    config = Cluster(num_workers=1, evaluate=StageResources(num_cpus=2))
    progress = RunProgress(Console(file=StringIO()))
    started = time.monotonic()
    with (
        pytest.raises(EvaluationError, match=r"one needs 2 CPU, and the nodes have 1 CPU\. Lower"),
        Workers(config, progress, tmp_path) as workers,
    ):
        workers.run_tasks("Merging", [Task("merge", (tmp_path / "done").touch, (), 1)], "merge")
    assert time.monotonic() - started < 60
    assert not (tmp_path / "done").exists()


def answer_slowly(model: str, item: int) -> str:
    time.sleep(1.0)
    return f"{model}{item}"


@pytest.mark.ray
def test_a_cluster_without_a_single_core_yet_is_asked_for_an_actor_for_each_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from ray.cluster_utils import Cluster as RayCluster

    found = RayCluster(initialize_head=True, head_node_args={"num_cpus": 0})
    actors: set[int] = set()
    wait: Any = _Pool._wait
    grown: list[Any] = []

    def grow_and_wait(pool: _Pool) -> None:
        if not grown:  # as Ray's autoscaler would, when something is asked for
            grown.append(found.add_node(num_cpus=2))
        wait(pool)

    monkeypatch.setattr(_Pool, "_wait", grow_and_wait)
    try:
        config = Cluster(address=found.address, stall_seconds=200)
        events = EventLog(tmp_path / EVENTS_NAME)
        progress = RunProgress(Console(file=StringIO()), events)
        with Workers(config, progress, tmp_path) as workers:
            jobs = [ModelJob(name, load, (name,), answer_slowly, [1, 2, 3]) for name in "ab"]
            results: list[str] = []
            note = lambda job, item, result: results.append(result)  # noqa: E731
            workers.serve_models("Evaluating", jobs, note, lambda item: 1)
    finally:
        found.shutdown()
    for event in read_events(tmp_path / EVENTS_NAME):
        if event["event"] == "actor started":
            actors.add(event["actor"])
    assert sorted(results) == ["a1", "a2", "a3", "b1", "b2", "b3"]
    assert actors == {0, 1}


def test_how_many_actors_a_cluster_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    progress = RunProgress(Console(file=StringIO()))
    for cores, wanted, expected in ((0, None, 5), (64, None, 64), (2, 40, 40), (64, 3, 3)):
        monkeypatch.setattr("cluster.session.num_cpus", lambda cores=cores: cores)
        workers = Workers(Cluster(address="auto", num_workers=wanted), progress)
        assert workers._most_actors(5) == expected


def test_tasks_that_make_heads_and_images_report_what_they_do(tmp_path: Path):
    for package in ("open_clip", "sklearn", "matplotlib"):
        pytest.importorskip(package)
    from evaluators.backends.clip import build_clip, zero_shot_head
    from evaluators.quickstart_images import load_quickstart_task

    seen: list[int] = []
    with progress_to(seen.append):
        load_quickstart_task("digits", "test", seed=0, cache=tmp_path)
        assert len(seen) == 1
        clip = build_clip("nan-merge-mini", seed=0)
        zero_shot_head(clip, ["one", "two", "three"], ["a {}."])
    assert len(seen) == 1 + 3
    assert all(seen)
