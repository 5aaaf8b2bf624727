"""The run's workers: Ray, started when the first piece of work comes and not before.

A repeated run finds everything done and so never starts Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from nan_merge.tasks import Task
from pipelines.progress import RunProgress

if TYPE_CHECKING:
    from cluster.actors import ModelJob
    from pipelines.config import Cluster


class Workers:
    """Runs tasks, streams and model actors with a progress bar. Use as a context manager."""

    def __init__(self, config: Cluster, progress: RunProgress) -> None:
        self._config, self._progress = config, progress
        self._stack = ExitStack()
        self._num_cpus = 0

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def _start(self) -> int:
        if not self._num_cpus:
            from cluster.session import ray_session

            session = ray_session(self._config.address, self._config.num_workers)
            self._num_cpus = self._stack.enter_context(session)
        return self._num_cpus

    def run_tasks(self, stage: str, tasks: Sequence[Task]) -> list[Any]:
        """Results of tasks, in their order; see `cluster.tasks.run_tasks`."""
        if not tasks:
            return []
        self._start()
        from cluster.tasks import run_tasks

        with self._progress.stage(stage, len(tasks)) as bar:
            return run_tasks(tasks, lambda place, _: bar.advance(1, tasks[place].label))

    def run_streams(
        self,
        stage: str,
        tasks: Sequence[Task],
        total: int,
        steps_of: Callable[[int, Any], tuple[int, str]],
    ) -> None:
        """Run generator functions; ``steps_of`` turns what they yield into steps and a detail."""
        if not tasks:
            return
        self._start()
        from cluster.tasks import run_streams

        with self._progress.stage(stage, total) as bar:
            run_streams(tasks, lambda place, item: bar.advance(*steps_of(place, item)))

    def serve_models(
        self,
        stage: str,
        jobs: Sequence[ModelJob],
        on_result: Callable[[ModelJob, Any, Any], None],
    ) -> None:
        """Work through jobs on model actors; see `cluster.actors.serve_models`."""
        if not jobs:
            return
        num_actors = self._start()
        from cluster.actors import serve_models

        with self._progress.stage(stage, sum(len(job.items) for job in jobs)) as bar:

            def report(job: ModelJob, item: Any, result: Any) -> None:
                on_result(job, item, result)
                bar.advance(1, job.label)

            serve_models(jobs, num_actors, report)
