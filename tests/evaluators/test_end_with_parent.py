"""A program ends with its parent, and what it started with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from evaluators import end_with_parent

OWNER = """
import subprocess, sys, time
from evaluators import end_with_parent
program = ["/bin/sh", "-c", "trap 'exit 0' TERM; sleep 600 & echo $!; wait"]
started = subprocess.Popen(
    end_with_parent.command(program), stdout=subprocess.PIPE, text=True, start_new_session=True
)
print(started.pid, started.stdout.readline(), flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
def test_children_that_the_program_leaves_behind_are_ended_too():
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(end_with_parent.__file__).parent.parent)},
    )
    assert owner.stdout is not None
    program, child = map(int, owner.stdout.readline().split())
    assert psutil.pid_exists(program) and psutil.pid_exists(child)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    limit = time.monotonic() + 60
    while time.monotonic() < limit and any(map(is_alive, (program, child))):
        time.sleep(0.1)
    assert not is_alive(program) and not is_alive(child)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
