"""Run a program that ends when its parent does, however that ends; Linux only, elsewhere it stays.

What the program has started in its process group, and does not end itself, is ended soon after it.

Run as a script, so it needs nothing but the standard library:
``python end_with_parent.py PARENT_PID PROGRAM ARGUMENT...``
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_GRACE_SECONDS = 10.0


def command(program: Sequence[str]) -> list[str]:
    """What to start instead of a program, from this process, so that it ends with it."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *program]


def main(parent: int, program: Sequence[str]) -> None:
    """Become a program that the kernel tells to end when the parent has ended."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before we could ask
            sys.exit(1)
        leader = os.getpid()
        if os.getpgrp() == leader and not os.fork():
            _end_group_after(leader)
    os.execv(program[0], list(program))


def _end_group_after(leader: int) -> None:
    """Wait in a process of its own until the leader of this group has ended; then end the group."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)
    if os.getppid() == leader:
        signal.sigwait({signal.SIGUSR1})
    time.sleep(_GRACE_SECONDS)  # most of it ends by itself, and leaves less behind then
    os.killpg(leader, signal.SIGKILL)  # this process included


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
