"""Ctrl-C that is not lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def noticing_interrupts() -> Generator[Callable[[], None]]:
    """Yield a function that raises KeyboardInterrupt if there was a Ctrl-C.

    Python raises it wherever the main thread is at that moment; where that is a callback of an
    extension module, it is printed and forgotten. Whoever works in a loop asks again.
    """
    asked = threading.Event()

    def note(number: int, frame: Any) -> None:
        asked.set()
        raise KeyboardInterrupt

    def check() -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check  # signals are the main thread's
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
