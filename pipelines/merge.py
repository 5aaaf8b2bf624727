"""Merge from the command line, on this machine and without Ray, and say what was done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nan_merge.coefficient_table import nearly_equal
from nan_merge.hub import headers_only
from nan_merge.manifest import MANIFEST_NAME, read_manifest
from nan_merge.merge import merge_checkpoint
from nan_merge.plan import MergePlan, check_disk, plan_merge
from nan_merge.recipe import MergeRecipe
from nan_merge.tasks import Task
from pipelines.progress import RunProgress


def merge_command(recipe: MergeRecipe, output: Path, console: Console) -> None:
    """Merge a recipe into a folder and print its coefficients."""
    progress = RunProgress(console)

    def run_tasks(tasks: Sequence[Task]) -> list[Any]:
        results: list[Any] = []
        with progress.stage(tasks[0].label if tasks else "nothing", len(tasks)) as bar:
            for task in tasks:
                results.append(task.function(*task.arguments))
                bar.advance()
        return results

    outcome = merge_checkpoint(recipe, output, run_tasks, workers=os.cpu_count() or 1)
    manifest = read_manifest(output / MANIFEST_NAME)
    console.print(coefficients_table(manifest))
    for line in coefficient_notes(manifest):
        console.print(line, markup=False, highlight=False)
    verb = "was merged before and is unchanged" if outcome.reused else "is written"
    console.print(f"{output} {verb}.", markup=False, highlight=False)


def plan_command(recipe: MergeRecipe, console: Console) -> None:
    """Check from headers alone whether a recipe can be merged, and print what it would write."""
    with headers_only():
        plan = plan_merge(recipe)
    check_disk([(plan, Path())])
    console.print(plan_table(plan))
    console.print(
        f"{recipe.method.name} over {len(plan.models)} models: reads {plan.input_bytes / 1e9:,.3f} "
        f"GB once per pass, writes {plan.output_bytes / 1e9:,.3f} GB. Everything fits.",
        markup=False,
        highlight=False,
    )


def plan_table(plan: MergePlan) -> Table:
    """The files that a merge would write."""
    table = Table(title="Output files", title_justify="left")
    table.add_column("file")
    table.add_column("tensors", justify="right")
    table.add_column("bytes", justify="right")
    for shard in plan.shards:
        table.add_row(shard.file_name, f"{len(shard.tensors):,}", f"{shard.num_bytes:,}")
    return table


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


def uniformity_notes(manifest: dict[str, Any]) -> list[str]:
    """A warning if coefficients that were made from norms came out nearly equal, else nothing."""
    values = list(manifest["coefficients"].values())
    if manifest["scope"] != "model" or len(values) < 2 or not manifest["norms"]:
        return []
    if not nearly_equal(values):
        return []
    return [
        "The coefficients lie within 1 % of each other: this is, in effect, uniform weighting. "
        "Fine-tunes of one base have nearly equal weight norms; `target: task_vector` "
        "compares what was learned instead."
    ]
