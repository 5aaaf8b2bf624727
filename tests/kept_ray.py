"""A local Ray that outlives the run which started it, so that the runs of a file share its workers.

Starting Ray, and importing torch in every worker, is most of what a run of small models takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from cluster import session


class KeptRay:
    """Opened by the first session that asks; the others find it there."""

    def __init__(self, num_cpus: int = 2) -> None:
        self._wanted, self._num_cpus = num_cpus, 0
        self._stack, self._open = ExitStack(), session.ray_session

    @contextmanager
    def ray_session(
        self, address: str = "local", num_cpus: int | None = None, *, dashboard: bool = False
    ) -> Iterator[int]:
        """What takes the place of `cluster.session.ray_session`."""
        if address != "local" or num_cpus not in (None, self._wanted) or dashboard:
            self.close()  # a process can have but one
            with self._open(address, num_cpus, dashboard=dashboard) as own:
                yield own
            return
        if not self._num_cpus:
            self._num_cpus = self._stack.enter_context(self._open("local", self._wanted))
        yield self._num_cpus

    def close(self) -> None:
        self._stack.close()
        self._num_cpus = 0
