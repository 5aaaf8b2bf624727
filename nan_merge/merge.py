"""Merge checkpoints: plan, measure, write every file, publish. One process; no Ray.

`cluster` runs the same tasks on many workers; the bytes are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from nan_merge.manifest import MANIFEST_NAME, merge_key, read_manifest, write_side_files
from nan_merge.measure import measure
from nan_merge.plan import MergePlan, check_disk, plan_merge
from nan_merge.publish import clear_folder, publish_folder, write_text_atomically
from nan_merge.recipe import MergeRecipe
from nan_merge.shard import JOURNAL, ShardRecord, merge_shard
from nan_merge.tasks import RunTasks, Task, run_serially


@dataclass(frozen=True)
class MergeOutcome:
    """A merged checkpoint.

    Attributes:
        output: Its folder.
        key: Digest of everything that decides its bytes.
        reused: Whether it was there already.
    """

    output: Path
    key: str
    reused: bool


@dataclass(frozen=True)
class _Job:
    plan: MergePlan
    output: Path
    key: str

    @property
    def inputs(self) -> tuple[str, ...]:
        plan = self.plan
        checkpoints = (plan.base, *plan.models) if plan.base else plan.models
        return tuple(str(checkpoint.folder.resolve()) for checkpoint in checkpoints)

    @property
    def is_done(self) -> bool:
        manifest = self.output / MANIFEST_NAME
        return manifest.is_file() and read_manifest(manifest).get("merge_key") == self.key


def merge_checkpoint(
    recipe: MergeRecipe, output: Path, run_tasks: RunTasks = run_serially
) -> MergeOutcome:
    """Merge one recipe into a checkpoint folder; see `merge_checkpoints`."""
    return merge_checkpoints([(recipe, output)], run_tasks)[0]


def merge_checkpoints(
    recipes: Sequence[tuple[MergeRecipe, Path]],
    run_tasks: RunTasks = run_serially,
    *,
    replace: bool = False,
) -> list[MergeOutcome]:
    """Merge recipes into checkpoint folders, which appear whole or not at all.

    Recipes over the same models share their statistics. A merge that was interrupted continues
    where it stood; one that is there already is left as it is.

    Args:
        recipes: Recipes and their output folders.
        run_tasks: Where the tasks run; by default here, one after the other.
        replace: Let a merge take the place of another merge's folder, for folders that belong
            to the caller. A folder that is no merge is never replaced.

    Raises:
        NanMergeError: If inputs are missing, damaged, or do not fit; if an output folder holds
            something else; if the disk is full.
    """
    jobs: list[_Job] = []
    for recipe, output in recipes:
        plan = plan_merge(recipe)
        jobs.append(_Job(plan, output, merge_key(plan)))
    todo = [job for job in jobs if not job.is_done]
    for job in todo:
        check_disk(job.plan, job.output)
    for _, group in groupby(sorted(todo, key=_by_inputs), key=_by_inputs):
        _merge_group(list(group), run_tasks, replace)
    made = {job.output for job in todo}
    return [MergeOutcome(job.output, job.key, reused=job.output not in made) for job in jobs]


def _by_inputs(job: _Job) -> tuple[str, ...]:
    return job.inputs


def _merge_group(jobs: Sequence[_Job], run_tasks: RunTasks, replace: bool) -> None:
    """Merge recipes over the same inputs: all statistics first, then all files of all results."""
    with ExitStack() as stack:
        folders = [_enter_staging(stack, job, replace) for job in jobs]
        measured = measure([job.plan for job in jobs], run_tasks)
        tasks = [
            Task(
                f"merge {job.output.name}",
                merge_shard,
                (shard, job.plan.recipe, item, str(folder)),
                shard.input_bytes,
            )
            for job, item, folder in zip(jobs, measured, folders, strict=True)
            for shard in job.plan.shards
        ]
        records: Iterator[ShardRecord] = iter(run_tasks(tasks))
        for job, item, folder in zip(jobs, measured, folders, strict=True):
            own_records = islice(records, len(job.plan.shards))
            files = {record.file_name: record.sha256 for record in own_records}
            write_side_files(folder, job.plan, item, job.key, files)
            clear_folder(folder / JOURNAL)
            (folder / JOURNAL).rmdir()


def _enter_staging(stack: ExitStack, job: _Job, replace: bool) -> Path:
    """The output's staging folder, with what an interrupted attempt at the same merge left."""
    is_merge = (job.output / MANIFEST_NAME).is_file()
    publishing = publish_folder(job.output, keep_partial=True, replace=replace and is_merge)
    folder = stack.enter_context(publishing)
    key_file = folder / JOURNAL / "merge_key"
    if not key_file.is_file() or key_file.read_text(encoding="utf-8") != job.key:
        clear_folder(folder)
        write_text_atomically(key_file, job.key)
    return folder
