"""Merges with traps: faults that go off inside a worker, at a read or a write of a chosen task."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import save_file

from cluster.flight import Watch
from cluster.task_options import TaskFolders, TaskOptions
from cluster.tasks import run_tasks
from nan_merge.merge import merge_checkpoints
from nan_merge.recipe import MergeRecipe
from nan_merge.tasks import Task, report_progress

NUM_FILES = 6
SWEEP = {
    "ties": {"method": {"name": "ties", "density": 0.3}, "coefficients": {"source": "nan"}},
    "average": {"method": "average"},
    "arithmetic": {"method": "task_arithmetic", "coefficients": {"source": "nan", "scale": "norm"}},
}


@dataclass(frozen=True)
class Trap:
    """A fault at a place in a stage.

    Attributes:
        label: Of the tasks of the stage: "norms" or "merge".
        place: The task, from 0.
        call: The call of the system that it befalls: "preadv" or "pwrite".
        number: Which one of the task's calls, from 0.
        action: "kill" (SIGKILL), "io" (EIO), "wait" (for the file "go"), "stall" (for ever).
        times: How often it goes off.
    """

    label: str
    place: int
    call: str
    number: int
    action: str
    times: int = 1


def make_models(folder: Path) -> Path:
    """A base and two fine-tunes; a merge of them has `NUM_FILES` files, and is a read each."""
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{i}.w": torch.randn(50, 70, generator=generator) for i in range(NUM_FILES)}
    for name in ("base", "maths", "code"):
        (folder / name).mkdir(parents=True)
        noise = 0.0 if name == "base" else 0.1
        tensors = {
            key: value + noise * torch.randn(value.shape, generator=generator)
            for key, value in base.items()
        }
        save_file(tensors, folder / name / "model.safetensors")
    return folder


def sweep(models: Path, output: Path, names: Sequence[str] = ("ties",)) -> list[tuple[Any, Path]]:
    """Recipes over the models, and where their results go."""
    common = {
        "base": str(models / "base"),
        "models": [str(models / "maths"), str(models / "code")],
        "shard_bytes": 20_000,
    }
    return [(MergeRecipe.model_validate(common | SWEEP[name]), output / name) for name in names]


def merge_on_ray(
    recipes: Sequence[tuple[Any, Path]],
    work: Path,
    trap: Trap | None = None,
    options: TaskOptions | None = None,
) -> list[dict[str, Any]]:
    """Merge on the open session's workers; events as they came, also after an error in `work`."""
    events: list[dict[str, Any]] = []
    folders = TaskFolders(work / "progress", work / "logs")
    for folder in (folders.progress, folders.logs):
        assert folder is not None
        folder.mkdir(parents=True, exist_ok=True)

    def note(name: str, details: dict[str, Any]) -> None:
        events.append({"event": name, **details})
        (work / "events.json").write_text(json.dumps(events))

    watch = Watch(folders, note)

    def run(tasks: Sequence[Task]) -> list[Any]:
        set_up = [trapped(task, place, work, trap) for place, task in enumerate(tasks)]
        # Where no trap is set, a slow machine must not be taken for a stuck task.
        is_meant = trap is None or any(task.label == trap.label for task in tasks)
        mine = options if is_meant or options is None else replace(options, stall_seconds=None)
        return run_tasks(set_up, None, mine, watch)

    merge_checkpoints(recipes, run)
    return events


def trapped(task: Task, place: int, work: Path, trap: Trap | None) -> Task:
    """The task as it is, or with the trap set if it is meant."""
    if trap is None or (task.label, place) != (trap.label, trap.place):
        return task
    return replace(task, function=fall_in, arguments=(str(work), trap, task))


def fall_in(work: str, trap: Trap, task: Task) -> Any:
    """Task body: do the task's work until the trap goes off."""
    with spring(Path(work), trap):
        return task.function(*task.arguments)


@contextmanager
def spring(work: Path, trap: Trap) -> Iterator[None]:
    real: Callable[..., int] = getattr(os, trap.call)
    calls = 0

    def call(*arguments: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == trap.number + 1 and _goes_off(work, trap):
            _act(work, trap)
        report_progress(1)
        return real(*arguments)

    with mock.patch(f"os.{trap.call}", call):
        yield


def _goes_off(work: Path, trap: Trap) -> bool:
    counter = work / "sprung"
    before = len(counter.read_text()) if counter.exists() else 0
    if before >= trap.times:
        return False
    counter.write_text("x" * (before + 1))
    return True


def _act(work: Path, trap: Trap) -> None:
    import ray

    (work / "at").write_text(ray.get_runtime_context().get_node_id())
    if trap.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if trap.action == "io":
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    while trap.action == "stall" or not (work / "go").exists():
        time.sleep(0.05)


def times_sprung(work: Path) -> int:
    """How often the trap went off."""
    return len((work / "sprung").read_text())


def wait_for(path: Path, seconds: float = 120) -> str:
    """The content of a file, once it has any."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear within {seconds} s")


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a checkpoint."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def finished_files(output: Path) -> dict[str, int]:
    """Files of an unfinished merge that its journal calls whole -> their inodes."""
    staging = output.parent / f".{output.name}.partial"
    names = [path.stem for path in (staging / ".journal").glob("*.safetensors.json")]
    return {name: (staging / name).stat().st_ino for name in names}
