"""Merge from the command line, on this machine and without Ray, and say what was done."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nan_merge.coefficient_table import nearly_equal
from nan_merge.errors import ConfigError
from nan_merge.manifest import MANIFEST_NAME, read_manifest
from nan_merge.merge import merge_checkpoint, merge_to_url
from nan_merge.object_output import publish_to
from nan_merge.object_store import default_cache, is_url, stage
from nan_merge.recipe import MergeRecipe
from nan_merge.tasks import RunTasks, Task, progress_to
from nan_merge.verify import verify_checkpoint
from pipelines.progress import RunProgress, StageProgress

SHOW_SECONDS = 0.2


def num_workers() -> int:
    """Threads or processes that commands work with: one for each core that this one may use."""
    if hasattr(os, "sched_getaffinity"):  # a container or a batch system may have lent a few
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def merge_command(
    recipe: MergeRecipe, output: str, console: Console, *, staging: Path | None = None
) -> None:
    """Merge a recipe into a folder, or into an object store, and print its coefficients."""
    progress = RunProgress(console)
    run_tasks, place = tasks_with_progress(progress), place_of(output, staging)
    if isinstance(place, str):

        def publish(folder: Path, url: str) -> None:
            with progress.stage("send", 1000) as bar:
                publish_to(folder, url, on_progress=show_bytes(bar))

        manifest, reused = merge_to_url(
            recipe, place, run_tasks, workers=num_workers(), staging=staging, publish=publish
        )
    else:
        reused = merge_checkpoint(recipe, place, run_tasks, workers=num_workers()).reused
        manifest = read_manifest(place / MANIFEST_NAME)
    console.print(coefficients_table(manifest))
    notes = [coefficient_notes, same_content_notes, repair_notes]
    for line in [line for note in notes for line in note(manifest)]:
        console.print(line, markup=False, highlight=False)
    verb = "was merged before and is unchanged" if reused else "is written"
    console.print(f"{output} {verb}.", markup=False, highlight=False, soft_wrap=True)


def place_of(output: str, staging: Path | None) -> Path | str:
    """The folder, or the URL, that OUT names.

    Raises:
        ConfigError: If a staging folder is named for an OUT that needs none.
    """
    if is_url(output):
        return output
    if staging is not None:
        raise ConfigError(
            f"--staging is for results in an object store, but {output} is a folder here, beside "
            "which its merge is made. Leave it out."
        )
    return Path(output)


def tasks_with_progress(progress: RunProgress) -> RunTasks:
    """Run tasks here, one after the other, under a bar."""

    def run_tasks(tasks: Sequence[Task]) -> list[Any]:
        results: list[Any] = []
        name, num_bytes = tasks[0].label if tasks else "nothing", sum(task.cost for task in tasks)
        with progress.stage(name, len(tasks), "files", num_bytes) as bar:
            done = 0
            for task in tasks:
                with progress_to(_shown(bar, done)):
                    results.append(task.function(*task.arguments))
                done += task.cost
                bar.work(done, num_workers())
                bar.advance()
        return results

    return run_tasks


def _shown(bar: StageProgress, done: int) -> Callable[[int], None]:
    """Adds bytes to those that are done, and moves the bar now and then; threads may call it."""
    lock, shown = Lock(), time.monotonic()

    def add(num_bytes: int) -> None:
        nonlocal done, shown
        with lock:
            done += num_bytes
            if time.monotonic() - shown > SHOW_SECONDS:
                shown = time.monotonic()
                bar.work(done, num_workers())

    return add


def verify_command(output: str, console: Console) -> None:
    """Compare a merged checkpoint with its manifest and say how much was compared."""
    if is_url(output):
        console.print(f"{output} is copied to {default_cache()} first.", soft_wrap=True)
    folder = stage(output) if is_url(output) else Path(output)
    with RunProgress(console).stage("verify", 1000) as bar:
        found = verify_checkpoint(folder, num_workers(), show_bytes(bar))
    console.print(
        f"{output} is whole: {found.num_tensors:,} tensors in {_count(found.num_files, 'file')}, "
        f"{found.num_bytes:,} bytes of data as they were written.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def show_bytes(bar: StageProgress) -> Callable[[int, int], None]:
    """A function that moves a bar of 1000 steps to (bytes done, bytes in all)."""
    steps = 0

    def show(done: int, total: int) -> None:
        nonlocal steps
        now = 1000 * done // max(total, 1)
        bar.advance(now - steps, f"{done / 1e9:.1f} of {total / 1e9:.1f} GB")
        steps = now

    return show


def coefficients_table(manifest: dict[str, Any]) -> Table:
    """Norms, shares and coefficients of a merge, a row per model."""
    table = Table(title="Coefficients", title_justify="left")
    for column in ("model", "norm", "alpha", "coefficient"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for model, coefficient in manifest["coefficients"].items():
        table.add_row(
            escape(model),
            _number(manifest["norms"].get(model)),
            _number(manifest["alpha"].get(model)),
            _number(coefficient),
        )
    return table


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        low, high = min(value.values()), max(value.values())
        return f"{low:.6g} to {high:.6g}"
    return f"{value:.6g}"


def coefficient_notes(manifest: dict[str, Any]) -> list[str]:
    """What a reader should know before believing that coefficients matter."""
    values = list(manifest["coefficients"].values())
    if manifest["scope"] != "model" or not values:
        return []
    return [f"Sum of the coefficients: {sum(values):.6g}.", *uniformity_notes(manifest)]


def same_content_notes(manifest: dict[str, Any]) -> list[str]:
    """A warning for every model that holds the same numbers as one before it."""
    first: dict[str, str] = {}
    notes: list[str] = []
    for entry in manifest["fingerprints"]:
        same = first.setdefault(entry["fingerprint"], entry["name"])
        if same is not entry["name"]:
            notes.append(
                f"{entry['name']} holds the same numbers as {same}: was another model meant?"
            )
    return notes


def repair_notes(manifest: dict[str, Any]) -> list[str]:
    """What a method had to repair, in how many tensors."""
    notes: list[str] = []
    for repair, tensors in manifest.get("repairs", {}).items():
        if repair == "ridge":
            notes.append(
                f"A ridge was added to the Gram matrices of {_count(len(tensors), 'tensor')}, such "
                f"as {next(iter(tensors))}: their sum could not be inverted. What no data showed "
                "there keeps the average of the models."
            )
        else:
            number = sum(tensors.values())
            notes.append(
                f"{number:,.0f} elements of {_count(len(tensors), 'tensor')} were {repair}."
            )
    return notes


def uniformity_notes(manifest: dict[str, Any]) -> list[str]:
    """A warning if coefficients that were made from norms came out nearly equal, else nothing."""
    values = list(manifest["coefficients"].values())
    if manifest["scope"] != "model" or len(values) < 2 or not manifest["norms"]:
        return []
    if not nearly_equal(values):
        return []
    note = "The coefficients lie within 1 % of each other: this is, in effect, uniform weighting."
    spec = manifest.get("recipe", {}).get("coefficients", {})
    if spec.get("target") != "task_vector":
        note += (
            " Fine-tunes of one base have nearly equal weight norms; `target: task_vector` "
            "compares what was learned instead."
        )
    return [note]
