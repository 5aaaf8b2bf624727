"""A backend that leaves behind whatever can be left behind, and does what a trap tells it to.

Its engine is a process of its own with a port, shared memory, and a child that leaves its session.
Every load and every answer is logged, so that tests can count what was done twice. A file
``traps/MODEL-SHARD`` (or ``MODEL-load``) says what happens there: once, or with "always" each time.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # before Ray is imported: loopback only

from cluster.actors import ModelJob, serve_models
from cluster.session import ray_session
from evaluators.prediction_journal import PredictionJournal
from evaluators.predictions import Prediction
from evaluators.scores import Score, score_accuracy
from nan_merge.errors import EvaluationError

NUM_SHARDS, SHARD_SIZE = 4, 3
SAMPLE_IDS = [f"s{number}" for number in range(NUM_SHARDS * SHARD_SIZE)]
ENGINE = """
import json, mmap, os, socket, sys, time
record, memory = sys.argv[1], f"/dev/shm/nan-merge-test-{os.getpid()}"
port = socket.socket(); port.bind(("127.0.0.1", 0)); port.listen()
file = open(memory, "w+b"); file.truncate(4096); mapped = mmap.mmap(file.fileno(), 4096)
child = os.fork()
if child == 0:
    os.setsid()
    time.sleep(600)
found = {"pids": [os.getpid(), child], "port": port.getsockname()[1], "memory": memory}
with open(record + ".partial", "w") as out:
    json.dump(found, out)
os.rename(record + ".partial", record)
time.sleep(600)
"""


@dataclass(frozen=True)
class FakeShard:
    folder: Path
    number: int

    def __str__(self) -> str:
        return f"toy, shard {self.number}"


@dataclass(frozen=True)
class FakeModel:
    label: str
    engine: Path

    def close(self) -> None:
        engine = json.loads(self.engine.read_text())
        for pid in engine["pids"]:
            os.kill(pid, signal.SIGKILL)
        Path(engine["memory"]).unlink()


def wait_for(is_so: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"in {seconds:g} s there was no {what}"
        time.sleep(0.02)


def load_model(folder: Path, label: str) -> FakeModel:
    _log(folder, f"{label}-load")
    engine = folder / "engines" / f"{label}-{os.getpid()}"
    command = [sys.executable, "-I", "-S", "-c", ENGINE, str(engine)]
    subprocess.Popen(command, start_new_session=True)
    wait_for(engine.exists, "engine")
    _spring_trap(folder, f"{label}-load")
    return FakeModel(label, engine)


def answer_shard(model: FakeModel, shard: FakeShard) -> list[Prediction]:
    name = f"{model.label}-{shard.number}"
    _log(shard.folder, name)
    if (shard.folder / "traps" / name).exists():
        # The answers before this one have left the process: what is lost is this one alone.
        wait_for(lambda: num_kept(shard.folder, model.label) >= shard.number, "earlier answers")
    _spring_trap(shard.folder, name)
    places = range(shard.number * SHARD_SIZE, (shard.number + 1) * SHARD_SIZE)
    return [
        Prediction(f"s{place}", f"c{place % 2}", "x", "x" if place % 3 else model.label, -0.1)
        for place in places
    ]


def _log(folder: Path, line: str) -> None:
    with (folder / "log").open("a") as file:
        file.write(f"{line}\n")


def _spring_trap(folder: Path, name: str) -> None:
    trap = folder / "traps" / name
    if not trap.exists():
        return
    action = trap.read_text()
    if "always" not in action:
        trap.unlink()
    if "kill" in action:
        os.kill(os.getpid(), signal.SIGKILL)
    if "memory" in action:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 200_000_000
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        bytearray(4_000_000_000)
    if "hang" in action:
        time.sleep(600)
    if "stop" in action:  # every thread stops, those of Ray, too
        os.kill(os.getpid(), signal.SIGSTOP)
    if "storage" in action:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "images.npz")
    if "refuse" in action:
        raise EvaluationError(f"{name} cannot be answered. Mend it.")
    if "wait" in action:
        (folder / f"reached-{name}").touch()
        wait_for((folder / "go").exists, "go")


def prepare(folder: Path, traps: dict[str, str]) -> Path:
    for name in ("traps", "engines", "predictions"):
        (folder / name).mkdir(parents=True)
    (folder / "log").touch()
    for name, action in traps.items():
        (folder / "traps" / name).write_text(action)
    return folder


def evaluate(folder: Path, labels: list[str], num_actors: int, **more: Any) -> dict[str, Score]:
    """As `pipelines.evaluate` does it: ask for what is missing, keep every shard, then score."""
    journals = {
        m: PredictionJournal(record_of(folder, m), m, SAMPLE_IDS, Prediction) for m in labels
    }
    shards = [list(range(n * SHARD_SIZE, (n + 1) * SHARD_SIZE)) for n in range(NUM_SHARDS)]
    jobs = [
        ModelJob(
            label,
            load_model,
            (folder, label),
            answer_shard,
            [FakeShard(folder, number) for number in journal.missing(shards)],
        )
        for label, journal in journals.items()
    ]

    def keep(job: ModelJob, _: FakeShard, predictions: list[Prediction]) -> None:
        journals[job.label].append(predictions)

    serve_models(jobs, num_actors, keep, **more)
    return {m: score_accuracy("toy", journal.finish()) for m, journal in journals.items()}


def record_of(folder: Path, label: str) -> Path:
    return folder / "predictions" / f"{label}.jsonl"


def num_kept(folder: Path, label: str) -> int:
    """Shards in a model's journal, which may be written at this moment."""
    path = record_of(folder, label)
    journal = path.with_name(f".{path.name}.partial")
    lines = journal.read_bytes().count(b"\n") if journal.exists() else 1
    return (lines - 1) // SHARD_SIZE


def calls(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


def leftovers(folder: Path) -> list[str]:
    """What is left of any engine that was started."""
    left: list[str] = []
    for path in (folder / "engines").iterdir():
        engine = json.loads(path.read_text())
        left += [f"process {pid}" for pid in engine["pids"] if _is_alive(pid)]
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", engine["port"])) == 0:
                left.append(f"port {engine['port']}")
        if Path(engine["memory"]).exists():
            left.append(engine["memory"])
    return left


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


if __name__ == "__main__":
    with ray_session(sys.argv[2]):
        evaluate(Path(sys.argv[1]), sys.argv[3].split(","), 1)
