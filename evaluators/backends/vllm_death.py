"""Notice that a vLLM engine has ended, and say how.

vLLM's client for one process (``vllm/v1/engine/core_client.py``, ``SyncMPClient``, version 0.32)
learns of an engine's end from the engine's own last message. One that was killed sends none, and
the client waits for ever, although a thread of its own has seen the process end.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

POLL_SECONDS = 0.2


def is_dead(engine: Any) -> bool:
    """Whether the engine behind a ``vllm.LLM`` has ended."""
    return bool(getattr(_resources(engine), "engine_dead", False))


@contextmanager
def waking_when_dead(engine: Any, error: Callable[[], Exception]) -> Iterator[None]:
    """Within, a request that waits for an engine that has ended raises instead.

    Args:
        engine: A ``vllm.LLM``.
        error: Makes what is raised.
    """
    results = getattr(engine.llm_engine.engine_core, "outputs_queue", None)
    if results is None:  # an engine within this process
        yield
        return
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(POLL_SECONDS):
            if is_dead(engine):
                results.put_nowait(error())
                return

    watcher = threading.Thread(target=watch, name="vLLM death watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()


def how_it_ended(engine: Any) -> str:
    """What the system says of the end of an engine's processes, for people; may be nothing."""
    manager = getattr(_resources(engine), "engine_manager", None)
    codes = {getattr(process, "exitcode", None) for process in getattr(manager, "processes", ())}
    killed = sorted(-code for code in codes if isinstance(code, int) and code < 0)
    if signal.SIGKILL in killed:
        return "killed, as the system does where memory runs out"
    return f"by {signal.Signals(killed[0]).name}" if killed else ""


def _resources(engine: Any) -> Any:
    return getattr(engine.llm_engine.engine_core, "resources", None)
