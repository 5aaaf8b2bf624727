"""What a process started is gone after its end, however it came."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

# Children of every kind: another program in a session of its own, which forks; a fork that runs no
# program and leaves the session; shared memory, of the process itself and of its child.
LEADER = """
import json, mmap, os, subprocess, sys, time
from pathlib import Path
from cluster.reaper import watch_this_process

folder = Path(sys.argv[1])
watch_this_process("test-" + str(os.getpid()))
child = '''
import mmap, os, sys, time
file = open(sys.argv[1], "w+b"); file.truncate(4096); memory = mmap.mmap(file.fileno(), 4096)
if os.fork() == 0:
    os.setsid()
    print(os.getpid(), flush=True)
time.sleep(600)
'''
own = f"/dev/shm/nan-merge-test-{os.getpid()}"
childs = own + "-child"
program = subprocess.Popen(
    [sys.executable, "-c", child, childs], start_new_session=True, stdout=subprocess.PIPE, text=True
)
grandchild = int(program.stdout.readline())
forked = os.fork()
if forked == 0:
    time.sleep(600)
with open(own, "w+b") as file:
    file.truncate(4096)
    memory = mmap.mmap(file.fileno(), 4096)
found = {"pids": [program.pid, grandchild, forked], "files": [own, childs]}
(folder / "partial").write_text(json.dumps(found))
(folder / "partial").rename(folder / "found")
if sys.argv[2] == "exit":
    time.sleep(3)  # longer than the watcher takes between two looks
    os._exit(0)
time.sleep(600)
"""


def until(is_so: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.05)
    return is_so()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def start(folder: Path, how: str) -> tuple[subprocess.Popen[bytes], dict[str, list]]:
    leader = subprocess.Popen([sys.executable, "-c", LEADER, str(folder), how])
    assert until((folder / "found").exists)
    return leader, json.loads((folder / "found").read_text())


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_nothing_is_left_of_a_process_that_ended(tmp_path: Path, how: str):
    leader, found = start(tmp_path, how)
    assert all(map(is_alive, found["pids"]))
    assert all(Path(path).exists() for path in found["files"])
    if how == "kill":
        time.sleep(3)  # longer than the watcher takes between two looks
        leader.send_signal(signal.SIGKILL)
    leader.wait()
    assert until(lambda: not any(map(is_alive, found["pids"])))
    assert until(lambda: not any(Path(path).exists() for path in found["files"]))


def test_shared_memory_that_somebody_else_uses_stays(tmp_path: Path):
    leader, found = start(tmp_path, "kill")
    shared = Path(found["files"][1])
    try:
        with shared.open("r+b"):
            leader.send_signal(signal.SIGKILL)
            leader.wait()
            assert until(lambda: not any(map(is_alive, found["pids"])))
            time.sleep(1)
            assert shared.exists()
    finally:
        for path in found["files"]:
            Path(path).unlink(missing_ok=True)


def test_a_bystander_of_the_same_parent_lives_on(tmp_path: Path):
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        leader, found = start(tmp_path, "kill")
        leader.send_signal(signal.SIGKILL)
        leader.wait()
        assert until(lambda: not any(map(is_alive, found["pids"])))
        time.sleep(1)
        assert bystander.poll() is None
        assert is_alive(os.getpid())
    finally:
        bystander.kill()
        bystander.wait()
        for path in found["files"]:
            Path(path).unlink(missing_ok=True)
