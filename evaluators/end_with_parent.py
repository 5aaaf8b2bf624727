"""Run a program that ends when its parent does, however that ends; Linux only, elsewhere it stays.

Run as a script, so it needs nothing but the standard library:
``python end_with_parent.py PARENT_PID PROGRAM ARGUMENT...``
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def command(program: Sequence[str]) -> list[str]:
    """What to start instead of a program, from this process, so that it ends with it."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *program]


def main(parent: int, program: Sequence[str]) -> None:
    """Become a program that the kernel tells to end when the parent has ended."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before we could ask
            sys.exit(1)
    os.execv(program[0], list(program))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
