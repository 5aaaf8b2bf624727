"""Run OpenCompass' command so that all it starts ends with it.

A script for the interpreter of OpenCompass' environment; it needs nothing of this project.
OpenCompass starts its tasks through a shell, and they go on when it is told to end. It leads a
process group of its own here, and takes the whole of it along.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from typing import Any


def _end_all(number: int, frame: Any) -> None:
    os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if os.getpgrp() == os.getpid():
        signal.signal(signal.SIGTERM, _end_all)
    sys.argv[0] = "opencompass"
    sys.path.pop(0)  # this file's folder: its modules are not OpenCompass'
    runpy.run_module("opencompass.cli.main", run_name="__main__")
