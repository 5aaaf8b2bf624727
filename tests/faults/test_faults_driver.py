"""The driver is killed, or a second one comes: faults of what starts and stops Ray itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nan_merge.errors import OutputError
from nan_merge.merge import merge_checkpoints
from pipelines.run_folder import sole_writer
from tests.faults.merging import (
    NUM_FILES,
    content,
    finished_files,
    make_models,
    sweep,
    wait_for,
)

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]
ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path
from cluster.session import ray_session
from pipelines.run_folder import sole_writer
from tests.faults.merging import NUM_FILES, Trap, merge_on_ray, sweep
folder = Path(sys.argv[1])
trap = Trap("merge", NUM_FILES - 1, "pwrite", 1, "wait") if sys.argv[2] == "trap" else None
with sole_writer(folder / "run"), ray_session("local", 1):
    merge_on_ray(sweep(folder, folder), folder / "work", trap)
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_models(tmp_path_factory.mktemp("driver"))
    os.environ["NAN_MERGE_CACHE"] = str(folder / "cache")
    merge_checkpoints(sweep(folder, folder / "undisturbed"))
    return folder


def start(folder: Path, trap: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, str(folder), trap]
    return subprocess.Popen(command, env=environment, cwd=ROOT)


def family(pid: int) -> set[tuple[int, str]]:
    """A process and all that descends from it, each with when it was started."""
    there = {int(p.name): p for p in Path("/proc").iterdir() if p.name.isdecimal()}
    stats = {pid: read_stat(path) for pid, path in there.items()}
    found = {pid}
    while more := {p for p, stat in stats.items() if stat and int(stat[1]) in found} - found:
        found |= more
    return {(p, stat[19]) for p in found if (stat := stats.get(p))}


def read_stat(path: Path) -> list[str] | None:
    """Fields after the name of a process that lives."""
    try:
        fields = (path / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields


def living(processes: set[tuple[int, str]]) -> set[int]:
    stats = {pid: read_stat(Path(f"/proc/{pid}")) for pid, _ in processes}
    return {pid for pid, started in processes if (stat := stats[pid]) and stat[19] == started}


def shared_memory(processes: set[tuple[int, str]]) -> set[str]:
    """Files of shared memory that they have mapped and that have a name."""
    found: set[str] = set()
    for pid, _ in processes:
        try:
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        except OSError:
            continue
        found |= {line[line.index("/dev/shm/") :] for line in lines if "/dev/shm/" in line}
    return {path for path in found if not path.endswith("(deleted)")}


def until(is_true: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if is_true():
            return True
        time.sleep(0.1)
    return False


def test_a_killed_driver_leaves_nothing_behind_and_goes_on(models: Path):
    ((recipe, output),) = sweep(models, models)
    driver = start(models, "trap")
    wait_for(models / "work" / "at")
    refuse_a_second_driver(models, recipe, output)
    processes = family(driver.pid)
    assert len(processes) > 4  # Ray's daemons, its agents and the worker
    memory = shared_memory(processes)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert until(lambda: not living(processes), 20), "processes are left"
    assert not [path for path in memory if Path(path).exists()]

    kept = finished_files(output)
    assert len(kept) == NUM_FILES - 1
    assert not output.exists()
    assert start(models, "go on").wait(200) == 0
    assert content(output) == content(models / "undisturbed" / "ties")
    assert {name: (output / name).stat().st_ino for name in kept} == kept
    assert not (models / "run" / ".owner").exists()


def refuse_a_second_driver(folder: Path, recipe: object, output: Path) -> None:
    run = folder / "run"
    with pytest.raises(OutputError, match=r"Another run is writing to .* \(process \d+ on "):
        sole_writer(run).__enter__()
    with pytest.raises(OutputError, match=r"Another process is writing .*Wait for it"):
        merge_checkpoints([(recipe, output)])  # pyright: ignore[reportArgumentType]
