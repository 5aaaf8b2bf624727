"""Faults that are really injected while models are merged, on several Ray nodes on one machine.

Each ends with the bytes of an undisturbed merge in one process, or with one clear error and every
finished file kept. The rows of docs/reliability.md are in the order of these tests.
"""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.task_options import TaskOptions
from nan_merge.errors import NanMergeError
from nan_merge.merge import merge_checkpoints
from tests.faults.merging import (
    NUM_FILES,
    SWEEP,
    Trap,
    content,
    finished_files,
    make_models,
    merge_on_ray,
    sweep,
    times_sprung,
    wait_for,
)

pytestmark = pytest.mark.ray
STALL_SECONDS = 8.0
QUICK = TaskOptions(storage_waits_seconds=(0.1, 0.2, 0.4), stall_seconds=STALL_SECONDS)
# Of six files, the last: so some are finished when it goes wrong.
IN_STATISTICS = Trap("norms", NUM_FILES - 1, "preadv", 1, "kill")
IN_MERGING = Trap("merge", NUM_FILES - 1, "pwrite", 1, "kill")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merging")
    os.environ["NAN_MERGE_CACHE"] = str(folder / "cache")
    return make_models(folder)


@pytest.fixture(scope="module")
def undisturbed(models: Path) -> Path:
    """Every recipe merged in this process."""
    merge_checkpoints(sweep(models, models / "undisturbed", list(SWEEP)))
    return models / "undisturbed"


def same_bytes(output: Path, undisturbed: Path) -> bool:
    return content(output) == content(undisturbed / output.name)


def again(events: list[dict[str, Any]]) -> list[str]:
    return [event["reason"] for event in events if event["event"] == "task again"]


def test_a_sweep_on_two_nodes_has_the_bytes_of_one_process(cluster, models, undisturbed, tmp_path):
    recipes = sweep(models, tmp_path, list(SWEEP))
    events = merge_on_ray(recipes, tmp_path / "work")
    for _, output in recipes:
        assert same_bytes(output, undisturbed)
    done = Counter(event["task"] for event in events if event["event"] == "task done")
    assert done["merge"] == NUM_FILES  # each file is read once for all recipes
    assert len({event["node"] for event in events if event["event"] == "task begun"}) == 2
    assert again(events) == []
    assert list((tmp_path / "work" / "progress").iterdir()) == []


@pytest.mark.parametrize("trap", [IN_STATISTICS, IN_MERGING], ids=lambda trap: trap.label)
def test_a_killed_worker_costs_its_own_task_only(cluster, models, undisturbed, tmp_path, trap):
    ((recipe, output),) = sweep(models, tmp_path)
    events = merge_on_ray([(recipe, output)], tmp_path / "work", trap)
    assert times_sprung(tmp_path / "work") == 1
    assert same_bytes(output, undisturbed)
    assert again(events) == ["its worker or node was lost"]


@pytest.mark.parametrize("trap", [IN_STATISTICS, IN_MERGING], ids=lambda trap: trap.label)
def test_a_lost_node_costs_its_own_task_only(cluster, models, undisturbed, tmp_path, trap):
    ((recipe, output),) = sweep(models, tmp_path)
    trap = Trap(trap.label, trap.place, trap.call, trap.number, "wait")

    def remove() -> None:
        lost = wait_for(tmp_path / "work" / "at")
        node = next(node for node in cluster.worker_nodes if node.node_id == lost)
        cluster.remove_node(node, allow_graceful=False)

    removing = threading.Thread(target=remove)
    removing.start()
    events = merge_on_ray([(recipe, output)], tmp_path / "work", trap)
    removing.join()
    cluster.add_node(num_cpus=1)
    assert same_bytes(output, undisturbed)
    assert again(events) == ["its worker or node was lost"]


def test_a_cluster_that_lost_every_node_is_one_clear_error(cluster, models, tmp_path):
    ((recipe, output),) = sweep(models, tmp_path)
    # As after the loss of all nodes: none has what the tasks need.
    options = TaskOptions(resources={"lost": 1}, place_seconds=2)
    with pytest.raises(NanMergeError, match=r"No node .* for 2 s: one needs 1 CPU, 1 lost"):
        merge_on_ray([(recipe, output)], tmp_path / "work", None, options)


def test_a_file_that_kills_every_worker_is_one_clear_error(cluster, models, undisturbed, tmp_path):
    ((recipe, output),) = sweep(models, tmp_path)
    trap = Trap("merge", NUM_FILES - 1, "pwrite", 1, "kill", times=99)
    with pytest.raises(NanMergeError, match=r"worker that ran `merge` died .* up to 2 times"):
        merge_on_ray([(recipe, output)], tmp_path / "work", trap)
    assert times_sprung(tmp_path / "work") == 3
    continues_with_what_is_left(recipe, output, undisturbed, tmp_path)


def continues_with_what_is_left(recipe: Any, output: Path, undisturbed: Path, tmp_path: Path):
    """The same merge again does the unfinished files and no other."""
    kept = finished_files(output)
    assert kept
    assert not output.exists()
    merge_on_ray([(recipe, output)], tmp_path / "again")
    assert same_bytes(output, undisturbed)
    assert {name: (output / name).stat().st_ino for name in kept} == kept


@pytest.mark.parametrize(
    "trap",
    [Trap("norms", 2, "preadv", 1, "io"), Trap("merge", 2, "pwrite", 1, "io")],
    ids=lambda trap: trap.label,
)
def test_storage_that_fails_once_is_asked_again(cluster, models, undisturbed, tmp_path, trap):
    ((recipe, output),) = sweep(models, tmp_path)
    events = merge_on_ray([(recipe, output)], tmp_path / "work", trap, QUICK)
    assert times_sprung(tmp_path / "work") == 1
    assert same_bytes(output, undisturbed)
    assert again(events) == ["storage: Input/output error"]


def test_storage_that_fails_always_is_one_clear_error(cluster, models, undisturbed, tmp_path):
    ((recipe, output),) = sweep(models, tmp_path)
    trap = Trap("merge", 2, "pwrite", 1, "io", times=99)
    message = r"storage failed 4 times under `merge`.*Input/output error.*run the same command"
    with pytest.raises(NanMergeError, match=message):
        merge_on_ray([(recipe, output)], tmp_path / "work", trap, QUICK)
    assert times_sprung(tmp_path / "work") == 4
    events = json.loads((tmp_path / "work" / "events.json").read_text())
    assert [e["wait"] for e in events if e["event"] == "task again"] == [0.1, 0.2, 0.4]
    assert [e["event"] for e in events].count("task failed") == 1
    continues_with_what_is_left(recipe, output, undisturbed, tmp_path)


def test_a_task_that_falls_silent_is_done_again(cluster, models, undisturbed, tmp_path):
    ((recipe, output),) = sweep(models, tmp_path)
    trap = Trap("merge", NUM_FILES - 1, "pwrite", 1, "stall")
    events = merge_on_ray([(recipe, output)], tmp_path / "work", trap, QUICK)
    assert same_bytes(output, undisturbed)
    assert again(events) == ["no sign of life for 8 s"]


def test_a_task_that_falls_silent_twice_is_named(cluster, models, undisturbed, tmp_path):
    ((recipe, output),) = sweep(models, tmp_path)
    trap = Trap("merge", NUM_FILES - 1, "pwrite", 1, "stall", times=2)
    message = r"`merge` \(task 6 of 6\) gave no sign of life for 8 s, twice, the last time on \S+,"
    with pytest.raises(NanMergeError, match=message):
        merge_on_ray([(recipe, output)], tmp_path / "work", trap, QUICK)
    continues_with_what_is_left(recipe, output, undisturbed, tmp_path)
