"""How models and shards are shared among actors, on a local Ray. Deaths are in tests/faults."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.actors import ActorResources, ModelJob, serve_models
from nan_merge.errors import CheckpointError, EvaluationError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_two_cpus")]

Shard = tuple[str, ...]


class Model:
    def __init__(self, label: str) -> None:
        self.label = label

    def close(self) -> None:
        pass


class ClosedModel(Model):
    def __init__(self, label: str, log: Path) -> None:
        super().__init__(label)
        self.log = log

    def close(self) -> None:
        with self.log.open("a") as file:
            file.write(f"closed {self.label}\n")


def load_model(label: str) -> Model:
    if label == "broken":
        raise CheckpointError("model broken has no weights. Mend it.")
    return Model(label)


def load_closed_model(label: str, log: Path) -> ClosedModel:
    with log.open("a") as file:
        file.write(f"loaded {label}\n")
    return ClosedModel(label, log)


def name_and_pid(model: Model, item: Any) -> tuple[str, Any, int]:
    return model.label, item, os.getpid()


def wait_for(path: Path, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)


def wait_if_told(model: Model, item: tuple[Path, str]) -> tuple[str, str, int]:
    """Say that an item has begun; if it is told to, wait until it may go on."""
    folder, name = item
    (folder / f"begun-{name}").touch()
    if (folder / f"hold-{name}").exists():
        wait_for(folder / f"go-{name}")
    return model.label, name, os.getpid()


def refuse(model: Model, item: Any) -> None:
    raise CheckpointError(f"{model.label}: sample {item} is broken. Mend it.")


def job(label: str, items: list[Any], work: Any = name_and_pid, **more: Any) -> ModelJob:
    return ModelJob(label, load_model, (label,), work, items, **more)


def serve(jobs: list[ModelJob], num_actors: int = 2, **more: Any) -> tuple[list, list]:
    """Results and events, in the order in which they came."""
    results: list[Any] = []
    events: list[tuple[str, dict[str, Any]]] = []
    serve_models(
        jobs,
        num_actors,
        lambda _, __, result: results.append(result),
        lambda name, details: events.append((name, details)),
        **more,
    )
    return results, events


def test_every_model_meets_each_of_its_items_once():
    results, _ = serve([job(f"m{number}", [1, 2, 3, 2]) for number in range(5)])
    assert sorted((label, item) for label, item, _ in results) == sorted(
        (f"m{number}", item) for number in range(5) for item in (1, 2, 2, 3)
    )


def test_no_work_starts_no_actor():
    assert serve([job("m", [])]) == ([], [])


def test_models_come_by_expected_work_and_each_is_loaded_once_by_one_actor():
    jobs = [
        job(label, [cost, cost], cost_of=float) for label, cost in (("a", 1), ("b", 9), ("c", 3))
    ]
    results, events = serve(jobs, 1)
    assert [label for label, _, _ in results] == ["b", "b", "c", "c", "a", "a"]
    assert [details["model"] for name, details in events if name == "model loaded"] == list("bca")
    assert len({pid for _, _, pid in results}) == 1


def test_events_tell_the_story_of_an_actor():
    _, events = serve([job("m", [7], name_of=lambda item: f"shard {item}")], 1)
    assert [name for name, _ in events] == [
        "actor started",
        "model loading",
        "model loaded",
        "shard done",
    ]
    started, _, loaded, done = (details for _, details in events)
    assert {"actor", "model", "pid", "node"} <= set(started)
    assert loaded["model"] == "m"
    assert loaded["seconds"] >= 0
    assert (done["actor"], done["model"], done["shard"]) == (0, "m", "shard 7")


def test_an_actor_holds_two_shards_at_most(tmp_path: Path):
    (tmp_path / "hold-0").touch()
    items = [(tmp_path, str(number)) for number in range(5)]
    sent: set[int] = set()

    class Items(list[Any]):
        def __getitem__(self, place: Any) -> Any:
            sent.add(place)
            return super().__getitem__(place)

    def look(name: str, _: dict[str, Any]) -> None:
        if name == "model loaded":
            sent.clear()

    held: list[set[int]] = []

    def let_go() -> None:
        wait_for(tmp_path / "begun-0")
        time.sleep(1.0)  # time enough to send all five, were it allowed
        (tmp_path / "go-0").touch()

    thread = threading.Thread(target=let_go)
    thread.start()
    note = lambda *_: held.append(set(sent))  # noqa: E731
    serve_models([job("m", Items(items), wait_if_told)], 1, note, look)
    thread.join()
    assert held == [{0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2, 3, 4}, {0, 1, 2, 3, 4}]


def test_a_quick_model_does_not_wait_for_a_slow_one(tmp_path: Path):
    (tmp_path / "hold-slow").touch()
    slow = job("slow", [(tmp_path, "slow")], wait_if_told, cost_of=lambda _: 100.0)
    quick = [job(f"quick{n}", [(tmp_path, f"quick{n}")], wait_if_told) for n in range(3)]
    seen: list[str] = []

    def note(_: ModelJob, __: Any, result: tuple[str, str, int]) -> None:
        seen.append(result[0])
        if len(seen) == 3:  # the three quick ones are done while the slow one still works
            (tmp_path / "go-slow").touch()

    serve_models([slow, *quick], 2, note)
    assert seen[-1] == "slow"


def test_an_idle_actor_takes_part_of_what_is_left_of_a_model(tmp_path: Path):
    # The first actor is held at its first shard: it has the second one in reserve, and all others
    # are left to the actor that comes to help. It begins at the far end.
    (tmp_path / "hold-0").touch()
    items = [(tmp_path, str(number)) for number in range(6)]
    events: list[str] = []
    seen: list[tuple[str, int]] = []

    def note(_: ModelJob, __: Any, result: tuple[str, str, int]) -> None:
        seen.append((result[1], result[2]))
        if len(seen) == 4:
            (tmp_path / "go-0").touch()

    serve_models([job("m", items, wait_if_told)], 2, note, lambda name, _: events.append(name))
    assert [name for name, _ in seen[:4]] == ["5", "4", "3", "2"]
    assert sorted(name for name, _ in seen) == list("012345")
    assert len({pid for _, pid in seen[:4]}) == 1
    assert len({pid for _, pid in seen}) == 2
    assert events.count("stolen") == 1


def test_a_model_is_closed_before_the_next_is_loaded(tmp_path: Path):
    log = tmp_path / "log"
    jobs = [ModelJob(m, load_closed_model, (m, log), name_and_pid, [1]) for m in ("a", "b")]
    serve(jobs, 1)
    assert log.read_text().splitlines()[:3] == ["loaded a", "closed a", "loaded b"]


def test_a_model_may_ask_for_a_process_of_its_own():
    jobs = [job("a", [1]), job("b", [1], own_process=True), job("c", [1]), job("d", [1])]
    results, _ = serve(jobs, 1)
    pid = {label: pid for label, _, pid in results}
    assert pid["c"] == pid["d"]
    assert len({pid["a"], pid["b"], pid["c"]}) == 3


def test_models_that_need_other_resources_get_other_actors():
    half = ActorResources(num_cpus=0.5, memory=1_000_000)
    results, _ = serve([job("a", [1, 2]), job("b", [1], resources=half), job("c", [1])], 1)
    pid = {label: pid for label, _, pid in results}
    assert pid["a"] != pid["b"]
    assert len(results) == 4


def test_a_model_that_spans_nodes_gets_a_placement_group():
    import ray

    bundles = ({"CPU": 1.0}, {"CPU": 1.0})
    results, _ = serve([job("m", [1], resources=ActorResources(bundles=bundles))], 1)
    assert results[0][:2] == ("m", 1)
    groups = ray.util.placement_group_table().values()
    assert [list(group["bundles"].values()) for group in groups] == [list(bundles)]
    assert all(group["state"] == "REMOVED" for group in groups)


def test_resources_that_no_node_has_are_one_clear_error():
    eight = ActorResources(num_gpus=8)
    with pytest.raises(EvaluationError, match=r"no place for the actor of m in 3 s.*num_gpus=8"):
        serve([job("m", [1], resources=eight)], 1, start_seconds=3)


def test_what_fits_is_done_while_something_else_finds_no_place():
    eight = ActorResources(num_gpus=8)
    jobs = [job("big", [1], resources=eight, cost_of=lambda _: 100.0), job("a", [1]), job("b", [1])]
    done: list[str] = []
    with pytest.raises(EvaluationError, match="no place for the actor of big"):
        serve_models(jobs, 2, lambda job, *_: done.append(job.label), start_seconds=3)
    assert sorted(done) == ["a", "b"]


def test_a_model_that_cannot_be_loaded_says_why_and_is_tried_once():
    with pytest.raises(CheckpointError, match=r"^model broken has no weights\. Mend it\.$"):
        serve([job("broken", [1])])


def test_an_error_of_the_work_comes_as_it_was_raised():
    with pytest.raises(CheckpointError, match=r"^m: sample 1 is broken\. Mend it\.$"):
        serve([job("m", [1], refuse)])


def refuse_last(model: Model, item: tuple[Path, str]) -> str:
    folder, name = item
    if name == "first":
        wait_for(folder / "good-begun")
        return name
    (folder / "refused").touch()
    raise CheckpointError("the last sample is broken. Mend it.")


def answer_while_busy(model: Model, folder: Path) -> str:
    (folder / "good-begun").touch()
    wait_for(folder / "busy")
    (folder / "good-done").touch()
    return "good"


def test_what_other_actors_have_finished_when_an_error_comes_is_kept(tmp_path: Path):
    # While the driver is busy with the first result, one model fails and the other one finishes.
    failing = [(tmp_path, "first"), (tmp_path, "last")]
    jobs = [
        job("failing", failing, refuse_last, cost_of=lambda _: 9.0),
        job("good", [tmp_path], answer_while_busy),
    ]
    kept: list[str] = []

    def keep(_: ModelJob, __: Any, result: str) -> None:
        kept.append(result)
        if result == "first":
            (tmp_path / "busy").touch()
            wait_for(tmp_path / "refused")
            wait_for(tmp_path / "good-done")
            time.sleep(0.5)  # for both answers to arrive

    with pytest.raises(CheckpointError, match="the last sample is broken"):
        serve_models(jobs, 2, keep)
    assert kept == ["first", "good"]
