"""Faults that are really injected while models are evaluated, on several Ray nodes on one machine.

Each ends with the predictions and scores of an undisturbed run, or with one clear error and every
finished shard kept. Nothing that an engine had is left after any of them.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from evaluators.scores import Score
from nan_merge.errors import EvaluationError
from tests.faults.evaluation_backend import (
    NUM_SHARDS,
    calls,
    evaluate,
    leftovers,
    num_kept,
    prepare,
    record_of,
    wait_for,
)

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the watcher reads /proc"),
]
ROOT = Path(__file__).parents[2]
STALL_SECONDS = 6.0


@pytest.fixture(scope="module")
def undisturbed(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(tmp_path_factory.mktemp("undisturbed"), {})
    evaluate(folder, ["a", "b"], 2)
    expected = [f"{m}-{part}" for m in "ab" for part in ("load", *range(NUM_SHARDS))]
    assert set(calls(folder)) == set(expected)
    assert nothing_is_left(folder)
    return folder


def nothing_is_left(folder: Path) -> bool:
    assert list((folder / "engines").iterdir()), "no engine was started, so nothing is shown"
    with suppress(AssertionError):
        wait_for(lambda: not leftovers(folder), "end of the engines", 30)
    return leftovers(folder) == []


def same_as(undisturbed: Path, folder: Path, labels: str) -> bool:
    return all(
        record_of(folder, m).read_bytes() == record_of(undisturbed, m).read_bytes() for m in labels
    )


def answers(folder: Path) -> Counter[str]:
    return Counter(line for line in calls(folder) if not line.endswith("load"))


def once(labels: str = "a", twice: str = "") -> Counter[str]:
    return Counter(
        [f"{m}-{number}" for m in labels for number in range(NUM_SHARDS)] + twice.split()
    )


def test_an_actor_that_dies_is_replaced(undisturbed, tmp_path):
    # By SIGKILL, which is how the kernel ends a process when memory runs out, too.
    folder = prepare(tmp_path / "run", {"a-load": "kill", "a-2": "kill"})
    events: list[str] = []
    evaluate(folder, ["a"], 1, on_event=lambda name, _: events.append(name))
    assert same_as(undisturbed, folder, "a")
    assert answers(folder) == once(twice="a-2")
    assert calls(folder).count("a-load") == 3
    assert events.count("actor died") == 2
    assert nothing_is_left(folder)


def test_an_actor_that_reaches_its_limit_of_memory_is_replaced(undisturbed, tmp_path):
    # RLIMIT_AS: Python raises MemoryError, and the process lives on until it is replaced.
    folder = prepare(tmp_path / "run", {"a-3": "memory"})
    events: list[str] = []
    evaluate(folder, ["a"], 1, on_event=lambda name, _: events.append(name))
    assert same_as(undisturbed, folder, "a")
    assert answers(folder) == once(twice="a-3")
    assert events.count("actor died") == 1
    assert nothing_is_left(folder)


def test_a_shard_that_kills_every_actor_is_one_clear_error(undisturbed, tmp_path):
    folder = prepare(tmp_path / "run", {"a-2": "kill always"})
    with pytest.raises(
        EvaluationError, match=r"serves a was lost 3 times.*working on toy, shard 2 \(ActorDied"
    ):
        evaluate(folder, ["a"], 1)
    assert answers(folder)["a-2"] == 3
    assert num_kept(folder, "a") == 2  # shards 0 and 1
    assert nothing_is_left(folder)
    (folder / "traps" / "a-2").unlink()
    evaluate(folder, ["a"], 1)
    assert same_as(undisturbed, folder, "a")
    assert answers(folder) == once(twice="a-2 a-2 a-2")


def test_a_model_that_kills_every_actor_is_one_clear_error(cluster, tmp_path):
    folder = prepare(tmp_path / "run", {"a-load": "kill always"})
    with pytest.raises(EvaluationError, match=r"serves a was lost 3 times.*while loading it"):
        evaluate(folder, ["a"], 1)
    assert calls(folder) == ["a-load"] * 3
    assert nothing_is_left(folder)


def test_storage_that_fails_once_is_asked_again(undisturbed, tmp_path):
    folder = prepare(tmp_path / "run", {"a-load": "storage", "a-2": "storage"})
    lost: list[str] = []

    def note(name: str, details: dict[str, Any]) -> None:
        if name == "actor died":
            lost.append(details["reason"])

    evaluate(folder, ["a"], 1, on_event=note)
    assert lost == ["storage: Input/output error (images.npz)"] * 2
    assert same_as(undisturbed, folder, "a")
    assert answers(folder) - once() <= Counter(["a-2", "a-3"])  # the one in reserve, perhaps
    assert nothing_is_left(folder)


def test_storage_that_fails_always_is_one_clear_error(cluster, tmp_path):
    folder = prepare(tmp_path / "run", {"a-2": "storage always"})
    message = r"storage failed the actor that serves a 3 times.*shard 2: Input/output error \(image"
    with pytest.raises(EvaluationError, match=message):
        evaluate(folder, ["a"], 1)
    assert answers(folder)["a-2"] == 3
    assert num_kept(folder, "a") == 2  # shards 0 and 1
    assert nothing_is_left(folder)


def test_an_error_of_the_work_is_not_tried_again_and_what_was_finished_is_kept(cluster, tmp_path):
    folder = prepare(tmp_path / "run", {"a-3": "refuse always"})
    with pytest.raises(EvaluationError, match=r"^a-3 cannot be answered\. Mend it\.$"):
        evaluate(folder, ["a"], 1)
    assert answers(folder) == once()
    assert num_kept(folder, "a") == 3
    assert nothing_is_left(folder)


@pytest.mark.parametrize("action", ["hang", "stop"])
def test_an_actor_that_stalls_is_replaced(undisturbed, tmp_path, action):
    folder = prepare(tmp_path / "run", {"a-1": action})
    events: list[str] = []
    evaluate(
        folder,
        ["a"],
        1,
        stall_seconds=STALL_SECONDS,
        on_event=lambda name, _: events.append(name),
    )
    assert same_as(undisturbed, folder, "a")
    assert answers(folder) == once(twice="a-1")
    assert events.count("actor stalled") == 1
    assert nothing_is_left(folder)


def test_a_shard_that_stalls_twice_is_one_clear_error(cluster, tmp_path):
    folder = prepare(tmp_path / "run", {"a-1": "hang always"})
    with pytest.raises(
        EvaluationError, match=r"serves a gave no answer for 6 s while working on toy, shard 1"
    ):
        evaluate(folder, ["a"], 1, stall_seconds=STALL_SECONDS)
    assert answers(folder)["a-1"] == 2
    assert num_kept(folder, "a") == 1
    assert nothing_is_left(folder)


def test_a_node_lost_without_grace_costs_its_unfinished_shards_alone(
    cluster, undisturbed, tmp_path
):
    # Both models are held at shard 1 until it is known that the node of a's actor is gone.
    folder = prepare(tmp_path / "run", {"a-1": "wait", "b-1": "wait"})
    nodes: dict[int, str] = {}
    lost: list[str] = []

    def watch(name: str, details: dict[str, Any]) -> None:
        if name == "actor started":
            nodes[details["actor"]] = details["node"]
        if name == "shard done" and details["model"] == "a" and not lost:
            wait_for((folder / "reached-a-1").exists, "shard 1 of a")
            lost.append(nodes[details["actor"]])
            (node,) = (each for each in cluster.worker_nodes if each.node_id == lost[0])
            cluster.remove_node(node, allow_graceful=False)
        if name == "actor died":
            assert details["model"] == "a"
            cluster.add_node(num_cpus=1)  # a place for the replacement, and for the other tests
            (folder / "go").touch()

    evaluate(folder, ["a", "b"], 2, on_event=watch)
    assert same_as(undisturbed, folder, "ab")
    assert len(lost) == 1
    assert answers(folder) == once("ab", twice="a-1")
    assert nothing_is_left(folder)


def test_a_driver_that_was_killed_goes_on_where_it_stood(cluster, undisturbed, tmp_path):
    folder = prepare(tmp_path / "run", {"a-2": "wait"})
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.evaluation_backend", folder, cluster.address, "a"],
        cwd=ROOT,
    )
    try:
        wait_for((folder / "reached-a-2").exists, "shard 2")
        wait_for(lambda: num_kept(folder, "a") == 2, "shards 0 and 1 in the journal")
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert nothing_is_left(folder)
    assert not record_of(folder, "a").exists()
    scores: dict[str, Score] = evaluate(folder, ["a"], 1)
    assert same_as(undisturbed, folder, "a")
    assert answers(folder) == once(twice="a-2")  # shards 0, 1 were not asked for again
    assert scores["a"].num_samples == 12
