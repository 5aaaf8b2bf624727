"""Merge checkpoints: plan, measure, write every file, publish. One process; no Ray.

`cluster` runs the same tasks on many workers; the bytes are the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from nan_merge.checkpoint import Checkpoint, open_checkpoint
from nan_merge.data_statistics import refuse_foreign
from nan_merge.errors import OutputError
from nan_merge.fingerprint import (
    digest_text,
    fingerprint,
    identity,
    remember,
    remembered_fingerprint,
)
from nan_merge.manifest import (
    MANIFEST_NAME,
    is_whole,
    merge_key,
    read_manifest,
    write_side_files,
)
from nan_merge.measure import measure
from nan_merge.measured import Measured, is_compiled, method_of
from nan_merge.model_reference import open_model
from nan_merge.object_output import (
    find_result,
    forget_sent,
    local_copy,
    publish_to,
    sole_sender,
)
from nan_merge.plan import MergePlan, check_disk, plan_merge
from nan_merge.preflight import refuse_input_as_output
from nan_merge.publish import (
    PARTIAL,
    clear_folder,
    explain_write_errors,
    publish_folder,
    write_text_atomically,
)
from nan_merge.recipe import MergeRecipe
from nan_merge.shard import (
    JOURNAL,
    ShardJob,
    ShardRecord,
    merge_shards,
)
from nan_merge.statistics_journal import journaled
from nan_merge.tasks import RunTasks, Task, run_serially


@dataclass(frozen=True)
class MergeOutcome:
    """A merged checkpoint.

    Attributes:
        output: Its folder.
        key: Digest of everything that decides its content.
        reused: Whether it was there already.
    """

    output: Path
    key: str
    reused: bool


@dataclass(frozen=True)
class _Job:
    plan: MergePlan
    output: Path

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        return self.plan.inputs

    @property
    def group(self) -> tuple[str, ...]:
        """Merges of one group read the same blocks of the same files."""
        tensors = [tensor.name for shard in self.plan.shards for tensor in shard.tensors]
        unit = method_of(self.plan.recipe).unit
        sizes = [str(len(shard.tensors)) for shard in self.plan.shards]
        has_base = "with a base" if self.plan.base else "without a base"
        compiled = "compiled" if is_compiled(self.plan.recipe) else "torch"
        device = self.plan.recipe.device
        return (
            unit,
            compiled,
            device,
            has_base,
            *map(identity, self.checkpoints),
            *sizes,
            *tensors,
            *(tensor.taken_from or "" for tensor in self.plan.tensors),
        )


def merge_checkpoint(
    recipe: MergeRecipe, output: Path, run_tasks: RunTasks = run_serially, *, workers: int = 1
) -> MergeOutcome:
    """Merge one recipe into a checkpoint folder; see `merge_checkpoints`."""
    return merge_checkpoints([(recipe, output)], run_tasks, workers=workers)[0]


def merge_checkpoints(
    recipes: Sequence[tuple[MergeRecipe, Path]],
    run_tasks: RunTasks = run_serially,
    *,
    workers: int = 1,
    statistics_workers: int | None = None,
    replace: bool = False,
    statistics: Path | None = None,
) -> list[MergeOutcome]:
    """Merge recipes into checkpoint folders, which appear whole or not at all.

    Recipes over the same models share their statistics and their reading: each block is read
    once and merged by all of them. A merge that was interrupted continues where it stood; one
    that is there already is left as it is.

    Args:
        recipes: Recipes and their output folders.
        run_tasks: Where the tasks run; by default here, one after the other.
        workers: Processes of each task. The result does not depend on it.
        statistics_workers: The same for tasks of statistics; as many if None.
        replace: Let a merge take the place of another merge's folder, for folders that belong
            to the caller. A folder that is no merge is never replaced.
        statistics: A folder of the caller's in which statistics outlive this call, so that a
            later one over the same models does not gather them again.

    Raises:
        NanMergeError: If inputs are missing, damaged, or do not fit; if an output folder holds
            something else; if the disk is full.
    """
    jobs = [_Job(plan_merge(recipe), output) for recipe, output in recipes]
    for job in jobs:
        refuse_input_as_output(job.plan.sources, job.output)
        refuse_foreign_statistics(job.plan, workers)
    done = {job.output: key for job in jobs if (key := _key_if_done(job, workers))}
    todo = [job for job in jobs if job.output not in done]
    check_disk([(job.plan, job.output) for job in todo])
    made: dict[Path, str] = {}
    for _, group in groupby(sorted(todo, key=_group), key=_group):
        num_processes = (statistics_workers or workers, workers)
        made |= _merge_group(list(group), run_tasks, num_processes, replace, statistics)
    return [
        MergeOutcome(job.output, (done | made)[job.output], reused=job.output in done)
        for job in jobs
    ]


def refuse_foreign_statistics(plan: MergePlan, workers: int = 1) -> None:
    """See that statistics made from data belong to the very models that are merged.

    Raises:
        IncompatibleError: If a model changed since, or they are of another one.
    """
    if not plan.statistics:
        return
    # As they lie in files: the plan may have taken their rows in another order.
    base = open_model(plan.recipe.base, "base") if plan.recipe.base is not None else None
    for reference, statistics in zip(plan.recipe.models, plan.statistics, strict=True):
        model = open_model(reference.path, reference.name, base)
        refuse_foreign(statistics, fingerprint(model, workers))


def merge_key_of(recipe: MergeRecipe, workers: int = 1) -> str:
    """The key that a recipe's result has; it changes with everything that decides its content.

    Raises:
        NanMergeError: If inputs are missing, damaged, or do not fit.
    """
    return _key(_Job(plan_merge(recipe), Path()), workers)


def merge_to_url(
    recipe: MergeRecipe,
    url: str,
    run_tasks: RunTasks = run_serially,
    *,
    workers: int = 1,
    staging: Path | None = None,
    publish: Callable[[Path, str], None] = publish_to,
) -> tuple[dict[str, Any], bool]:
    """Merge one recipe into a folder of an object store, where it appears whole or not at all.

    It is merged into a local folder first, which is sent, the manifest last, and then removed. A
    merge or an upload that was interrupted continues where it stood; a merge that is there already
    is left as it is.

    Args:
        recipe: What to merge.
        url: Where it goes; a place that holds nothing.
        run_tasks: As in `merge_checkpoints`.
        workers: As in `merge_checkpoints`.
        staging: Parent of the local folder; see `nan_merge.object_output.local_copy`.
        publish: Sends the folder.

    Returns:
        The merge's manifest, and whether it was there already.

    Raises:
        NanMergeError: As in `merge_checkpoints`; if the URL's place holds anything else.
    """
    place = local_copy(url, staging)
    with sole_sender(place, url):
        manifest = find_result(place, url)
        reused = manifest is not None
        if manifest is None:
            merge_checkpoints([(recipe, place)], run_tasks, workers=workers, replace=True)
            publish(place, url)
            manifest = read_manifest(place / MANIFEST_NAME)
        elif manifest.get("merge_key") != _key(_Job(plan_merge(recipe), place), workers):
            raise OutputError(f"{url} holds another merge already. Choose another place.")
        shutil.rmtree(place, ignore_errors=True)
        forget_sent(place, url)
    return manifest, reused


def _group(job: _Job) -> tuple[str, ...]:
    return job.group


def _key_if_done(job: _Job, workers: int) -> str | None:
    """The merge's key if its folder is there and whole; inputs are read only then, to be sure."""
    with explain_write_errors(job.output):  # a name that no file can have
        if not (job.output / MANIFEST_NAME).is_file():
            return None
    key = _key(job, workers)
    manifest = read_manifest(job.output / MANIFEST_NAME)
    return key if manifest.get("merge_key") == key and is_whole(job.output) else None


def _key(job: _Job, workers: int) -> str:
    fingerprints = [fingerprint(checkpoint, workers) for checkpoint in job.checkpoints]
    return merge_key(job.plan, fingerprints)


def _merge_group(
    jobs: Sequence[_Job],
    run_tasks: RunTasks,
    num_processes: tuple[int, int],
    replace: bool,
    statistics: Path | None,
) -> dict[Path, str]:
    """Merge recipes over the same inputs: all statistics first, then all files of all results."""
    keys: dict[Path, str] = {}
    with ExitStack() as stack:
        folders = [_enter_staging(stack, job, replace) for job in jobs]
        kept = folders[0] / JOURNAL if statistics is None else statistics / _inputs_digest(jobs[0])
        recorded = journaled(run_tasks, kept)
        measured = measure([job.plan for job in jobs], recorded, num_processes[0])
        records = run_tasks(_shard_tasks(jobs, measured, folders, num_processes[1]))
        fingerprints = _fingerprints(jobs[0], [found[0] for found in records])
        for place, (job, item, folder) in enumerate(zip(jobs, measured, folders, strict=True)):
            keys[job.output] = merge_key(job.plan, fingerprints)
            files = [found[place] for found in records]
            write_side_files(folder, job.plan, item, fingerprints, files)
            clear_folder(folder / JOURNAL)
            (folder / JOURNAL).rmdir()
    for place, job in enumerate(jobs):
        _remember_output(job, [found[place] for found in records])
    return keys


def _inputs_digest(job: _Job) -> str:
    """Name of what was found in these very files; a file that changed gives another."""
    return digest_text(repr([identity(checkpoint) for checkpoint in job.checkpoints]))[:24]


def _shard_tasks(
    jobs: Sequence[_Job], measured: Sequence[Measured], folders: Sequence[Path], workers: int
) -> list[Task]:
    """A task per file; it writes that file of every merge of the group."""
    tasks: list[Task] = []
    for place, shard in enumerate(jobs[0].plan.shards):
        shard_jobs = [
            ShardJob(job.plan.shards[place], job.plan.recipe, item, str(folder))
            for job, item, folder in zip(jobs, measured, folders, strict=True)
        ]
        tasks.append(Task("merge", merge_shards, (shard_jobs, workers), shard.input_bytes))
    return tasks


def _fingerprints(job: _Job, records: Sequence[ShardRecord]) -> list[str]:
    """Fingerprints of the inputs, from the hashes that the merge took of what it read."""
    found: list[str] = []
    for place, checkpoint in enumerate(job.checkpoints):
        own = _own_names(job.plan, place)
        digests = {
            name: [bytes.fromhex(segment) for segment in segments]
            for record in records
            for name, segments in (record.inputs[place].items() if own else ())
            if name in own
        }
        if digests.keys() == checkpoint.tensors.keys():
            known = remembered_fingerprint(checkpoint)
            found.append(known or remember(checkpoint, digests))
        else:  # tensors that the merge leaves out are part of a checkpoint all the same
            found.append(fingerprint(checkpoint))
    return found


def _own_names(plan: MergePlan, place: int) -> set[str]:
    """Tensors that were read from an input itself, and not from what stands in for it."""
    if place >= len(plan.inputs) - len(plan.places):  # it was read for what is taken from it alone
        return set()
    own = plan.inputs[place].tensors
    return {each.name for each in plan.tensors if each.inputs[place] is own.get(each.name)}


def _remember_output(job: _Job, records: Sequence[ShardRecord]) -> None:
    digests = {
        name: [bytes.fromhex(segment) for segment in segments]
        for record in records
        for name, segments in record.tensors.items()
    }
    remember(open_checkpoint(str(job.output)), digests)


def _enter_staging(stack: ExitStack, job: _Job, replace: bool) -> Path:
    """The output's staging folder, with what an interrupted attempt at the same merge left."""
    is_merge = (job.output / MANIFEST_NAME).is_file()
    # A merge of ours that lost a file can only be made again.
    replaceable = is_merge and (replace or not is_whole(job.output))
    publishing = publish_folder(job.output, keep_partial=True, replace=replaceable)
    folder = stack.enter_context(publishing)
    key = merge_key(job.plan, [identity(checkpoint) for checkpoint in job.checkpoints])
    key_file = folder / JOURNAL / "merge_key"
    if not key_file.is_file() or key_file.read_text(encoding="utf-8") != key:
        clear_folder(folder)
        write_text_atomically(key_file, key)
    for partial in folder.glob(f".*{PARTIAL}"):  # of weights or side files, cut off by a kill
        partial.unlink(missing_ok=True)
    return folder
