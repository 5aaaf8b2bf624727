import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cluster.session import ray_session
from cluster.tasks import run_streams, run_tasks
from nan_merge.errors import CheckpointError, NanMergeError
from nan_merge.merge import merge_checkpoint
from nan_merge.recipe import MergeRecipe
from nan_merge.tasks import Task

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_two_cpus")]


def double(number: int) -> int:
    return 2 * number


def refuse() -> None:
    raise CheckpointError("model x is broken. Mend it.")


def fail() -> None:
    raise ZeroDivisionError("ours")


def die(marker: str, times: int) -> str:
    """Die by SIGKILL the first ``times`` times, as a worker does that runs out of memory."""
    path = Path(marker)
    deaths = int(path.read_text()) if path.exists() else 0
    if deaths < times:
        path.write_text(str(deaths + 1))
        os.kill(os.getpid(), signal.SIGKILL)
    return f"alive after {deaths} deaths"


def count_to(number: int) -> Iterator[int]:
    yield from range(1, number + 1)


def sleep_then_touch(seconds: float, path: str) -> None:
    time.sleep(seconds)
    Path(path).touch()


def span() -> tuple[float, float]:
    start = time.monotonic()
    time.sleep(0.2)
    return start, time.monotonic()


def span_stream() -> Iterator[tuple[float, float]]:
    yield span()


def test_a_local_ray_listens_on_the_loopback_alone():
    import ray

    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]


def test_results_come_in_the_order_asked_for():
    tasks = [Task("double", double, (number,), cost=number % 3) for number in range(9)]
    seen: list[int] = []
    assert run_tasks(tasks, lambda place, _: seen.append(place)) == list(range(0, 18, 2))
    assert sorted(seen) == list(range(9))


def test_a_users_error_comes_as_it_was_raised():
    with pytest.raises(CheckpointError, match=r"model x is broken\. Mend it\."):
        run_tasks([Task("refuse", refuse, (), 1)])


def test_our_own_error_keeps_its_type_and_its_text():
    with pytest.raises(ZeroDivisionError, match=r"^ours$"):
        run_tasks([Task("fail", fail, (), 1)])


def test_an_error_cancels_what_has_not_run(tmp_path: Path):
    late = [Task("late", sleep_then_touch, (1.0, str(tmp_path / f"{i}")), 0) for i in range(4)]
    with pytest.raises(CheckpointError):
        run_tasks([Task("refuse", refuse, (), 1), *late])
    time.sleep(3)
    assert list(tmp_path.iterdir()) == []


def test_a_task_whose_worker_was_killed_runs_again(tmp_path: Path):
    task = Task("die", die, (str(tmp_path / "deaths"), 1), 1)
    assert run_tasks([task]) == ["alive after 1 deaths"]


def test_a_worker_that_dies_again_and_again_is_one_clear_error(tmp_path: Path):
    with pytest.raises(NanMergeError, match=r"worker that ran `die` died .*fewer workers"):
        run_tasks([Task("die", die, (str(tmp_path / "deaths"), 99), 1)])
    assert int((tmp_path / "deaths").read_text()) == 3  # the first attempt and two retries


def test_streams_yield_as_they_go():
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    tasks = [Task("count", count_to, (number,), 1) for number in (3, 5, 0)]
    run_streams(tasks, lambda place, item: seen[place].append(item))
    assert seen == {0: [1, 2, 3], 1: [1, 2, 3, 4, 5], 2: []}


@pytest.mark.parametrize("stream", [False, True])
def test_no_more_tasks_at_once_than_the_session_allows(monkeypatch: Any, stream: bool):
    monkeypatch.setattr("cluster.session._limit", 1)
    if stream:
        spans = []
        tasks = [Task("span", span_stream, (), cost) for cost in range(3)]
        run_streams(tasks, lambda _, item: spans.append(item))
    else:
        spans = run_tasks([Task("span", span, (), cost) for cost in range(3)])
    spans.sort()
    assert len(spans) == 3
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert end <= start


def test_an_address_where_nothing_listens_is_told_at_once():
    start = time.monotonic()
    with (
        pytest.raises(NanMergeError, match=r"No Ray cluster answers at '127\.0\.0\.1:1'"),
        ray_session("127.0.0.1:1"),
    ):
        pass
    assert time.monotonic() - start < 6


def test_a_driver_outside_of_the_cluster_is_told_to_submit():
    with (
        pytest.raises(NanMergeError, match=r"ray://head:10001 is an address of Ray Client.*submit"),
        ray_session("ray://head:10001"),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "words"),
    [("local", "could not start on this machine: node timed out"), ("auto", "RAY_AUTH_TOKEN")],
)
def test_a_ray_that_does_not_start_is_one_clear_error(monkeypatch: Any, address: str, words: str):
    def fail_to_start(**_: Any) -> None:
        raise Exception("node\ntimed out.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", fail_to_start)
    monkeypatch.setattr("ray.shutdown", lambda: None)  # the other tests' session goes on
    with pytest.raises(NanMergeError, match=words), ray_session(address):
        pass


def test_num_workers_counts_in_a_cluster_that_is_joined(monkeypatch: Any):
    from cluster.session import worker_limit

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("ray.init", lambda **_: None)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with ray_session("auto", 1) as num_workers:
        assert (num_workers, worker_limit()) == (1, 1)
    assert worker_limit() is None


def test_ray_merges_to_the_same_bytes_as_one_process(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setenv("NAN_MERGE_CACHE", str(tmp_path / "cache"))
    generator = torch.Generator().manual_seed(0)
    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()
        tensors = {f"layers.{i}.w": torch.randn(50, 70, generator=generator) for i in range(6)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    recipe = MergeRecipe.model_validate(
        {
            "base": str(tmp_path / "base"),
            "models": [str(tmp_path / "a"), str(tmp_path / "b")],
            "method": {"name": "ties", "density": 0.3},
            "coefficients": {"source": "nan", "target": "task_vector", "scope": "layer"},
            "shard_bytes": 20_000,
        }
    )
    merge_checkpoint(recipe, tmp_path / "here")
    merge_checkpoint(recipe, tmp_path / "there", run_tasks)
    for file in (tmp_path / "here").iterdir():
        assert file.read_bytes() == (tmp_path / "there" / file.name).read_bytes()
