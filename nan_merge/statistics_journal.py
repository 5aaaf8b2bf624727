"""Keep what a statistics task found, so that a merge that was killed does not look again.

A record lies in the staging folder of the merge, which is cleared when an input changes; its name
says what was asked and of which tensors. The task writes it itself: who asked for it may be dead.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from pydantic import TypeAdapter

from nan_merge.errors import OutputError
from nan_merge.fingerprint import digest_text
from nan_merge.publish import write_bytes_atomically
from nan_merge.tasks import RunTasks, Task


def journaled(run_tasks: RunTasks, folder: Path) -> RunTasks:
    """Run tasks as ``run_tasks`` does, but those whose record is in the folder."""

    def run(tasks: Sequence[Task]) -> list[Any]:
        with suppress(OSError):  # the merge itself will say that the disk is full
            folder.mkdir(parents=True, exist_ok=True)
        return run_tasks(
            [
                replace(task, function=remembered, arguments=(str(_place(folder, task)), task))
                for task in tasks
            ]
        )

    return run


def _place(folder: Path, task: Task) -> Path:
    # The last argument is the number of workers, on which no result depends.
    asked = repr((task.function.__qualname__, task.arguments[:-1]))
    return folder / f"{task.label.replace(' ', '-')}-{digest_text(asked)[:24]}"


def remembered(place: str, task: Task) -> Any:
    """The record at a place, or what the task returns, which is then recorded."""
    path = Path(place)
    with suppress(OSError, ValueError):  # none yet, or one that cannot be read: look again
        return _load(path.read_bytes(), task.function)
    found = task.function(*task.arguments)
    with suppress(OutputError):  # the merge itself will say that the disk is full
        # No folder: another attempt was faster, and the merge has gone to its place since.
        write_bytes_atomically(path, _dump(found, task.function), make_folder=False)
    return found


def _dump(found: Any, function: Callable[..., Any]) -> bytes:
    if isinstance(found, np.ndarray):
        file = io.BytesIO()
        np.save(file, found, allow_pickle=False)
        return file.getvalue()
    return json.dumps(_adapter(function).dump_python(found, mode="json")).encode()


def _load(content: bytes, function: Callable[..., Any]) -> Any:
    if get_type_hints(function)["return"] is np.ndarray:
        return np.load(io.BytesIO(content), allow_pickle=False)
    return _adapter(function).validate_python(json.loads(content))


def _adapter(function: Callable[..., Any]) -> TypeAdapter[Any]:
    return TypeAdapter(get_type_hints(function)["return"])
