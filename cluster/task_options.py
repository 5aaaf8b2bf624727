"""What a stage's tasks need of a node, and how long one may be silent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_RETRIES = 2
"""How often Ray starts a task again whose worker or node died."""
STORAGE_WAITS_SECONDS = (2.0, 10.0, 30.0)
"""Waits before a task is sent again after an error of the storage; then the error is final."""


@dataclass(frozen=True)
class TaskOptions:
    """How the tasks of a stage run.

    Attributes:
        num_cpus: CPU cores that Ray sets aside for one task.
        num_gpus: GPUs, or a share of one.
        memory: Bytes of memory that Ray sets aside; None for no reservation.
        resources: Further resources by Ray's names for them.
        stall_seconds: A task that does not report progress for so long is cancelled and sent
            once more; None for tasks that report none.
        storage_waits_seconds: See `STORAGE_WAITS_SECONDS`.
        place_seconds: How long a cluster may be without any node that could run such a task.
    """

    num_cpus: float = 1
    num_gpus: float = 0
    memory: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict[str, float])
    stall_seconds: float | None = None
    storage_waits_seconds: tuple[float, ...] = STORAGE_WAITS_SECONDS
    place_seconds: float = 600

    def for_ray(self) -> dict[str, Any]:
        """Arguments of ``options`` of a Ray task."""
        return {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "memory": self.memory,
            "resources": dict(self.resources),
            "max_retries": MAX_RETRIES,
        }

    def demand(self) -> dict[str, float]:
        """What one node must have, by Ray's names."""
        wanted = {"CPU": self.num_cpus, "GPU": self.num_gpus, "memory": self.memory or 0}
        return {name: value for name, value in (wanted | dict(self.resources)).items() if value}


@dataclass(frozen=True)
class TaskFolders:
    """Where tasks leave traces; folders that every node sees.

    Attributes:
        progress: A file per attempt while it runs: where it runs, and bytes as they are done.
        logs: What tasks print, a file per attempt that printed anything; None leaves it to Ray.
    """

    progress: Path
    logs: Path | None = None
