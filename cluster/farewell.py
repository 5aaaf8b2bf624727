"""End what a local Ray leaves behind when its driver is killed.

Ray's own daemons die with the driver, and the workers soon after; but the agents of the node first
try for a minute to report it to them, holding their ports. So a small process waits at a pipe for
the driver's end, however it comes, and then ends the agents at once. It runs this file as a
script, so it needs nothing but the standard library.

Linux only: it reads /proc. Nothing happens elsewhere.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

Known = tuple[int, int]  # a process and when it was started in clock ticks: together unique


def ray_agents() -> list[Known]:
    """What this process's Ray node has started by now: its agents, and idle workers."""
    there = _processes()
    mine = {pid for pid, (parent, _, _) in there.items() if parent == os.getpid()}
    raylets = {pid for pid in mine if there[pid][2] == "raylet"}
    return [(pid, started) for pid, (parent, started, _) in there.items() if parent in raylets]


@contextmanager
def ending_with_this_process(processes: Sequence[Known]) -> Generator[None]:
    """Kill these processes if this one ends inside the block, or have not ended at its end."""
    if not processes:
        yield
        return
    waiting, mine = os.pipe()
    arguments = [f"{pid}:{started}" for pid, started in processes]
    # -I -S: nothing but the standard library, so it is there in a moment.
    waiter = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, *arguments],
        stdin=waiting,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )
    os.close(waiting)
    try:
        yield
    finally:
        os.close(mine)
        waiter.wait()


def _processes() -> dict[int, tuple[int, int, str]]:
    """Pid -> its parent, when it was started, its name."""
    found: dict[int, tuple[int, int, str]] = {}
    with suppress(OSError):  # no /proc
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and (read := _read(int(folder.name))) is not None:
                found[int(folder.name)] = read
    return found


def _read(pid: int) -> tuple[int, int, str] | None:
    try:
        # The name, in brackets, may hold anything; the fields after it are numbers.
        before, _, after = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
    except OSError:
        return None
    fields = after.split()
    return int(fields[1]), int(fields[19]), before.partition("(")[2]


def _wait_and_end(processes: Sequence[Known]) -> None:
    while os.read(0, 1):
        pass
    for pid, started in processes:
        found = _read(pid)
        if found is not None and found[1] == started:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _wait_and_end([(int(pid), int(start)) for pid, start in (a.split(":") for a in sys.argv[1:])])
