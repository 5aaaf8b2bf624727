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

from nan_merge.errors import EvaluationError
from nan_merge.tasks import Task
from pipelines.cluster_config import Cluster, StageName
from pipelines.progress import RunProgress, StageProgress

if TYPE_CHECKING:
    from cluster.actors import ActorResources, ModelJob
    from cluster.flight import Watch
    from cluster.task_options import TaskOptions

PROGRESS_FOLDER, LOGS_FOLDER = ".progress", "logs"
READING_STAGES = ("statistics", "merge")  # whose tasks cost what they read, in bytes
LOSSES = ("actor died", "actor stalled")


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
            if config.address == "local":  # and so it gets no further nodes
                self._refuse_impossible_actors()
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
    ) -> list[Any]:
        """Results of tasks, in their order; see `cluster.tasks.run_tasks`.

        Args:
            name: What they do, for people.
            tasks: What to run; they call `report_progress`, so one that is silent is stuck.
            stage: Whose resources they need.
        """
        if not tasks:
            return []
        self._start()
        from cluster.tasks import run_tasks

        num_bytes = sum(task.cost for task in tasks) if stage in READING_STAGES else 0
        with self._progress.stage(name, len(tasks), "tasks", num_bytes) as bar:
            return run_tasks(
                tasks,
                lambda place, _: bar.advance(1, tasks[place].label),
                self._options(stage),
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

        with self._progress.stage(name, total, "steps") as bar:
            run_streams(
                tasks,
                lambda place, item: bar.advance(*steps_of(place, item)),
                self._options(stage),
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
        self._start()
        from cluster.actors import START_SECONDS, serve_models

        is_local = self._config.address == "local"
        resources = self._actor_resources()
        jobs = [replace(job, resources=resources) for job in jobs]
        total = sum(samples_of(item) for job in jobs for item in job.items)
        with self._progress.stage(name, total, "samples") as bar:
            there: set[int] = set()
            answered = 0

            def report(job: ModelJob, item: Any, result: Any) -> None:
                nonlocal answered
                self._check()
                on_result(job, item, result)
                answered = samples_of(item)
                bar.advance(answered, job.label)

            def write(event: str, details: dict[str, Any]) -> None:
                samples = {"samples": answered} if event == "shard done" else {}
                self._progress.events.write(event, stage=name, **details, **samples)
                if event == "actor started":
                    there.add(details["actor"])
                elif event in (*LOSSES, "actor stopped"):
                    there.discard(details["actor"])
                bar.staff(len(there), "actor")
                if event in LOSSES:
                    why = details.get("reason", f"no answer for {details.get('seconds')} s")
                    self._progress.say(f"{name}: {details['model']} gets a new actor: {why}")

            serve_models(
                jobs,
                self._most_actors(len(jobs)),
                report,
                write,
                stall_seconds=self._config.stall_seconds,
                # Nodes of a cluster may have to be started first, those of a local Ray are there.
                start_seconds=START_SECONDS if is_local else self._config.stall_seconds,
            )

    def _refuse_impossible_actors(self) -> None:
        """Before any work, for models are served after all else is done."""
        from cluster.session import why_no_place

        if why := why_no_place(self._options("evaluate")):
            raise EvaluationError(
                f"This machine has no place for an actor that serves models: {why}. Lower what it "
                "needs (`cluster.evaluate`); a local Ray has as many CPUs as `cluster.num_workers`."
            )

    def _most_actors(self, num_models: int) -> int:
        config = self._config
        if config.address == "local":
            return self._num_cpus
        from cluster.session import num_cpus

        # A cluster may have few nodes, or none, until there is work: what is asked for and has no
        # place makes it grow.
        return config.num_workers or max(num_cpus(), num_models)

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

    def _options(self, stage: StageName) -> TaskOptions:
        from cluster.task_options import TaskOptions

        wanted, config = self._config.resources_of(stage), self._config
        return TaskOptions(
            num_cpus=wanted.num_cpus,
            num_gpus=self.num_gpus(stage),
            memory=wanted.memory,
            resources=wanted.resources,
            stall_seconds=config.stall_seconds,
            # A local Ray gets no further nodes; those of a cluster may have to be started first.
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
