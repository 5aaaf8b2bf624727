"""Leave nothing behind: end what actors, and a local Ray, would leave when they are killed.

An engine may start processes of its own, which hold ports, GPU memory and shared memory. When its
actor is killed they go on, as children of nobody. So every actor has a watcher: a small process in
a session of its own, which waits for the actor's end, however it comes, then kills what descends
from it, and removes the shared memory that these processes had open and nobody else has.

Ray's own daemons die with a killed driver, and the workers soon after; but the agents of the node
first try for a minute to report it to them, holding their ports. So another small process waits
at a pipe for the driver's end, and then ends the agents at once. It is no watcher, which would take
the driver out of its process group, and so out of reach of Ctrl-C.

Linux only: it reads /proc. Nothing happens elsewhere. Both run this file as a script, so it needs
nothing but the standard library.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

TAG = "NAN_MERGE_ACTOR"
"""Environment variable by which the descendants of an actor are known after its end."""
POLL_SECONDS = 0.2
LOOK_SECONDS = 2.0
TRACKER_SECONDS = 5.0
GIVE_UP_SECONDS = 30.0

Known = tuple[int, int]  # a process and when it was started in clock ticks: together unique
_IS_LINUX = sys.platform.startswith("linux")
# -I -S: nothing but the standard library, so it is there in a moment.
_THIS_SCRIPT = (sys.executable, "-I", "-S", __file__)
_SHARED_MEMORY = "/dev/shm/"
_TRACKER = b"multiprocessing.resource_tracker"


def watch_this_process(tag: str) -> None:
    """Start the watcher of this process, and mark all that it starts from now on.

    The process becomes the leader of a process group, so that children which are forked and run no
    program of their own are known, too.

    Args:
        tag: Unique among all actors.
    """
    if not _IS_LINUX:
        return
    this = _read_process(os.getpid())
    assert this is not None, "a process that runs is in /proc"
    if this.pid != os.getsid(0):  # the leader of a session leads its group already
        os.setpgid(0, 0)
    command = [*_THIS_SCRIPT, "watch", str(this.pid), str(this.started), tag]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    os.environ[TAG] = tag  # after that: the watcher must not bear the mark itself


def ray_agents() -> list[Known]:
    """What this process's Ray node has started by now: its agents, and idle workers."""
    there = _all_processes()
    raylets = {each.pid for each in there if (each.parent, each.name) == (os.getpid(), "raylet")}
    return [(each.pid, each.started) for each in there if each.parent in raylets]


@contextmanager
def ending_with_this_process(processes: Sequence[Known]) -> Generator[None]:
    """Kill these processes if this one ends inside the block, or have not ended at its end."""
    if not processes:
        yield
        return
    waiting, mine = os.pipe()
    waiter = subprocess.Popen(
        [*_THIS_SCRIPT, "wait", *(f"{pid}:{started}" for pid, started in processes)],
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


class _Process(NamedTuple):
    name: str
    pid: int
    parent: int
    group: int
    started: int  # clock ticks since the machine's start; with the pid, unique


def _read_process(pid: int) -> _Process | None:
    try:
        # The name, in brackets, may hold anything; the fields after it are numbers.
        before, _, after = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
    except OSError:
        return None
    name, fields = before.partition("(")[2], after.split()
    if fields[0] in "ZX":  # ended, and waits to be collected
        return None
    return _Process(name, pid, int(fields[1]), int(fields[2]), int(fields[19]))


def _all_processes() -> list[_Process]:
    if not _IS_LINUX:
        return []
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    return [found for pid in pids if (found := _read_process(pid)) is not None]


class _Family:
    """A process and what descends from it, also when it has ended."""

    def __init__(self, leader: int, started: int, tag: str) -> None:
        self._leader, self._tag = leader, f"{TAG}={tag}".encode()
        self._known = {leader: started}
        self._ended: float | None = None
        self.shared_memory: set[str] = set()

    def is_led(self) -> bool:
        """Whether the leader is alive."""
        leader = _read_process(self._leader)
        if leader is not None and leader.started == self._known.get(self._leader):
            return True
        if self._ended is None:
            uptime = float(Path("/proc/uptime").read_text().split()[0])
            self._ended = uptime * os.sysconf("SC_CLK_TCK")
        return False

    def look(self) -> list[int]:
        """Pids of those alive; what shared memory they have open is remembered."""
        there = {each.pid: each for each in _all_processes()}
        there.pop(os.getpid(), None)
        family = {
            each.pid
            for each in there.values()
            if self._known.get(each.pid) == each.started or self._is_marked(each)
        }
        while more := {each.pid for each in there.values() if each.parent in family} - family:
            family |= more
        # The leader stays known: by its pid and start, no other process is taken for it.
        leader = {self._leader: self._known[self._leader]}
        self._known = {pid: there[pid].started for pid in family} | leader
        for pid in family:
            self.shared_memory |= _open_shared_memory(pid)
        return sorted(family)

    def _is_marked(self, process: _Process) -> bool:
        if process.group == self._leader:
            return self._ended is None or process.started <= self._ended
        if self._ended is None:
            return False  # while the leader lives, its children are known by their parent
        return self._tag in _read_bytes(f"/proc/{process.pid}/environ").split(b"\0")


def _read_bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # it ended, or it is somebody else's
        return b""


def _open_shared_memory(pid: int) -> set[str]:
    """Files of shared memory that a process has open or mapped, and that have a name still."""
    maps = _read_bytes(f"/proc/{pid}/maps").decode(errors="replace").splitlines()
    paths = {line[line.index(_SHARED_MEMORY) :] for line in maps if _SHARED_MEMORY in line}
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                paths.add(str(descriptor.readlink()))
    return {
        path
        for path in paths
        if path.startswith(_SHARED_MEMORY) and not path.endswith(" (deleted)")
    }


def _end(family: _Family) -> None:
    """Kill until nobody is left; Python's trackers of shared memory get time to tidy up."""
    started = time.monotonic()
    while (alive := family.look()) and (waited := time.monotonic() - started) < GIVE_UP_SECONDS:
        trackers = {pid for pid in alive if _TRACKER in _read_bytes(f"/proc/{pid}/cmdline")}
        for pid in alive:
            if pid not in trackers or waited > TRACKER_SECONDS:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS / 4)


def _remove_shared_memory(paths: set[str]) -> None:
    left = {path for path in paths if Path(path).exists()}
    if left:
        in_use = set[str]().union(*(_open_shared_memory(each.pid) for each in _all_processes()))
        for path in map(Path, left - in_use):
            with suppress(OSError):
                if path.stat().st_uid == os.getuid():
                    path.unlink()


def _watch(leader: int, started: int, tag: str) -> None:
    """Watch a process until it ends, then end what it left; returns at once, works on behind."""
    if os.fork():
        os._exit(0)  # the watcher is nobody's child, so whoever ends the actor's children spares it
    os.setsid()
    os.chdir("/")
    family = _Family(leader, started, tag)
    looked = 0.0
    while family.is_led():
        if time.monotonic() - looked > LOOK_SECONDS:
            family.look()
            looked = time.monotonic()
        time.sleep(POLL_SECONDS)
    _end(family)
    _remove_shared_memory(family.shared_memory)


def _wait_and_end(processes: Sequence[Known]) -> None:
    """Wait until the other end of the pipe is closed, then kill."""
    while os.read(0, 1):
        pass
    for pid, started in processes:
        found = _read_process(pid)
        if found is not None and found.started == started:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "watch":
        _watch(int(arguments[0]), int(arguments[1]), arguments[2])
    else:
        _wait_and_end([(int(pid), int(start)) for pid, start in (a.split(":") for a in arguments)])
