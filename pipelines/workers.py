"""The run's workers: Ray, started when the first piece of work comes and not before.

A repeated run finds everything done and so never starts Ray.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nan_merge.tasks import Task
from pipelines.cluster_config import Cluster, StageName
from pipelines.progress import RunProgress, StageProgress

if TYPE_CHECKING:
    from cluster.actors import ActorResources, ModelJob
    from cluster.flight import Watch
    from cluster.task_options import TaskOptions

PROGRESS_FOLDER, LOGS_FOLDER = ".progress", "logs"


class Workers:
    """Runs tasks, streams and model actors with a progress bar. Use as a context manager.

    Args:
        config: Where Ray runs, and what each stage needs.
        progress: Where to show what is going on.
        folder: The run folder, seen by every node; tasks report and log there.
        checks: Called now and then; may raise to stop the run.
    """

    def __init__(
        self,
        config: Cluster,
        progress: RunProgress,
        folder: Path | None = None,
        checks: Sequence[Callable[[], None]] = (),
    ) -> None:
        self._config, self._progress, self._checks = config, progress, checks
        self._folder = folder.resolve() if folder is not None else None
        self._stack = ExitStack()
        self._num_cpus = 0

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def _check(self) -> None:
        for check in self._checks:
            check()

    def processes(self, stage: StageName) -> int:
        """In how many processes one task of a stage works."""
        return max(1, int(self._config.resources_of(stage).num_cpus))

    def _start(self) -> int:
        if not self._num_cpus:
            from cluster.session import ray_session

            config = self._config
            session = ray_session(config.address, config.num_workers, dashboard=config.dashboard)
            self._num_cpus = self._stack.enter_context(session)
            if self._folder is not None:
                (self._folder / LOGS_FOLDER).mkdir(exist_ok=True)
                reports = self._folder / PROGRESS_FOLDER
                shutil.rmtree(reports, ignore_errors=True)  # of a driver that was killed
                reports.mkdir()
                self._stack.callback(shutil.rmtree, reports, ignore_errors=True)
        return self._num_cpus

    def run_tasks(
        self,
        name: str,
        tasks: Sequence[Task],
        stage: StageName = "train",
        *,
        reports: bool = False,
    ) -> list[Any]:
        """Results of tasks, in their order; see `cluster.tasks.run_tasks`.

        Args:
            name: What they do, for people.
            tasks: What to run.
            stage: Whose resources they need.
            reports: Whether they call `report_progress`, so that one that is silent is stuck.
        """
        if not tasks:
            return []
        self._start()
        from cluster.tasks import run_tasks

        options = self._options(stage, reports)
        num_bytes = sum(task.cost for task in tasks) if reports else 0
        with self._progress.stage(name, len(tasks), "tasks", num_bytes) as bar:
            return run_tasks(
                tasks,
                lambda place, _: bar.advance(1, tasks[place].label),
                options,
                self._watch(name, bar),
            )

    def run_streams(
        self,
        name: str,
        tasks: Sequence[Task],
        total: int,
        steps_of: Callable[[int, Any], tuple[int, str]],
        stage: StageName = "train",
    ) -> None:
        """Run generator functions; ``steps_of`` turns what they yield into steps and a detail."""
        if not tasks:
            return
        self._start()
        from cluster.tasks import run_streams

        options = self._options(stage, reports=True)
        with self._progress.stage(name, total, "steps") as bar:
            run_streams(
                tasks,
                lambda place, item: bar.advance(*steps_of(place, item)),
                options,
                self._watch(name, bar),
            )

    def serve_models(
        self,
        name: str,
        jobs: Sequence[ModelJob],
        on_result: Callable[[ModelJob, Any, Any], None],
        samples_of: Callable[[Any], int],
    ) -> None:
        """Work through jobs on model actors; see `cluster.actors.serve_models`.

        Args:
            name: What they do, for people.
            jobs: One per model; what an actor needs is the run file's to say.
            on_result: Called with a job, a shard and its result.
            samples_of: Samples in a shard.
        """
        if not jobs:
            return
        num_actors = self._start()
        from cluster.actors import serve_models

        resources = self._actor_resources()
        jobs = [replace(job, resources=resources) for job in jobs]
        total = sum(samples_of(item) for job in jobs for item in job.items)
        with self._progress.stage(name, total, "samples") as bar:

            def report(job: ModelJob, item: Any, result: Any) -> None:
                self._check()
                on_result(job, item, result)
                bar.advance(samples_of(item), job.label)

            def write(event: str, details: dict[str, Any]) -> None:
                self._progress.events.write(event, stage=name, **details)
                if event in ("actor died", "actor stalled"):
                    why = details.get("reason", f"no answer for {details.get('seconds')} s")
                    self._progress.say(f"{name}: {details['model']} gets a new actor: {why}")

            stall_seconds = self._config.stall_seconds
            serve_models(jobs, num_actors, report, write, stall_seconds=stall_seconds)

    def _actor_resources(self) -> ActorResources:
        from cluster.actors import ActorResources

        wanted = self._config.resources_of("evaluate")
        return ActorResources(
            wanted.num_cpus, self.num_gpus("evaluate"), wanted.memory, wanted.resources
        )

    def num_gpus(self, stage: StageName) -> float:
        """GPUs of one task or actor of a stage, in the cluster that is open."""
        from cluster.session import has_gpus

        wanted = self._config.resources_of(stage).num_gpus
        return wanted if wanted != "auto" else float(has_gpus())

    def _options(self, stage: StageName, reports: bool) -> TaskOptions:
        from cluster.task_options import TaskOptions

        wanted, config = self._config.resources_of(stage), self._config
        return TaskOptions(
            num_cpus=wanted.num_cpus,
            num_gpus=self.num_gpus(stage),
            memory=wanted.memory,
            resources=wanted.resources,
            stall_seconds=config.stall_seconds if reports else None,
            # A local Ray gets no further nodes.
            place_seconds=1.0 if config.address == "local" else config.stall_seconds,
        )

    def _watch(self, name: str, bar: StageProgress) -> Watch:
        from cluster.flight import Watch
        from cluster.task_options import TaskFolders

        def show(num_bytes: int, num_running: int) -> None:
            self._check()
            bar.work(num_bytes, num_running)

        def write(event: str, details: dict[str, Any]) -> None:
            self._progress.events.write(event, stage=name, **details)
            if event == "task again":
                self._progress.say(f"{name}: {details['task']} is done again: {details['reason']}")

        folders = None
        if (folder := self._folder) is not None:
            folders = TaskFolders(folder / PROGRESS_FOLDER, folder / LOGS_FOLDER)
        return Watch(folders, write, show)
