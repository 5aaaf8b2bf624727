"""What a merge would do and cost, on the command line, before anything is read or written."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nan_merge import hub, object_store
from nan_merge.cost import memory_ceiling
from nan_merge.estimate import PassEstimate, estimate, measure_speeds
from nan_merge.manifest import MANIFEST_NAME
from nan_merge.measured import method_of
from nan_merge.object_output import local_copy
from nan_merge.plan import MergePlan
from nan_merge.preflight import preflight, tensor_groups
from nan_merge.publish import staging_path
from nan_merge.recipe import MergeRecipe
from pipelines.merge import num_workers, place_of

MAX_GROUPS, MAX_FILES = 40, 10
GIGA, MEBI = 1e9, 1 << 20


def plan_command(
    recipe: MergeRecipe, output: str | None, console: Console, *, staging: Path | None = None
) -> None:
    """Check a recipe, list every problem or say what the merge would do and cost."""
    goal = None if output is None else place_of(output, staging)
    with hub.headers_only() as headers, object_store.headers_only():
        plan = preflight(recipe, goal, staging)
        place = local_copy(goal, staging) if isinstance(goal, str) else goal
        workers = num_workers()
        passes = estimate(plan, measure_speeds(plan, place), workers)
        console.print(groups_table(plan))
        console.print(files_table(plan))
        console.print(passes_table(passes))
        lines = [*summary(plan, place, passes, workers), *unfetched(plan, headers)]
        if isinstance(goal, str):
            lines.append(
                f"{place} is then sent to {goal}, and removed here; the time for that is not in "
                "the estimate."
            )
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def unfetched(plan: MergePlan, headers: Path) -> list[str]:
    """What must be downloaded first: files that are headers alone, of the hub in this folder."""
    files = {file for each in plan.inputs for file in each.files}
    of_hub = {file for file in files if headers in file.parents}
    of_stores = {file for file in files if object_store.is_header_copy(file)}
    return [
        f"{len(found)} files ({sum(file.stat().st_size for file in found) / GIGA:,.3f} GB) are "
        f"still {where}: a merge {brings} them first, and the time for that is not in the estimate."
        for found, where, brings in (
            (of_hub, "on the hub", "downloads"),
            (of_stores, "in object stores", "copies"),
        )
        if found
    ]


def groups_table(plan: MergePlan) -> Table:
    """What becomes of the tensors, a row for each kind of name and fate."""
    table = Table(title="Tensors", title_justify="left")
    table.add_column("name", overflow="fold")
    table.add_column("tensors", justify="right")
    table.add_column("elements", justify="right")
    table.add_column("what becomes of them", overflow="fold")
    groups = tensor_groups(plan)
    for group in groups[:MAX_GROUPS]:
        numbers = f"{group.num_tensors:,}", f"{group.num_elements:,}"
        table.add_row(escape(group.pattern), *numbers, escape(group.fate))
    if rest := groups[MAX_GROUPS:]:
        tensors = sum(group.num_tensors for group in rest)
        elements = sum(group.num_elements for group in rest)
        table.add_row(f"... {len(rest)} more kinds", f"{tensors:,}", f"{elements:,}", "")
    return table


def files_table(plan: MergePlan) -> Table:
    """The files of weights that a merge would write."""
    table = Table(title="Files of weights", title_justify="left")
    table.add_column("file")
    table.add_column("tensors", justify="right")
    table.add_column("bytes", justify="right")
    for shard in plan.shards[:MAX_FILES]:
        table.add_row(shard.file_name, f"{len(shard.tensors):,}", f"{shard.num_bytes:,}")
    if rest := plan.shards[MAX_FILES:]:
        tensors = sum(len(shard.tensors) for shard in rest)
        num_bytes = sum(shard.num_bytes for shard in rest)
        table.add_row(f"... {len(rest)} more", f"{tensors:,}", f"{num_bytes:,}")
    return table


def passes_table(passes: Sequence[PassEstimate]) -> Table:
    """Every way through the inputs."""
    table = Table(title="Passes", title_justify="left")
    table.add_column("for")
    for column in ("reads, GB", "writes, GB", "estimate, s"):
        table.add_column(column, justify="right")
    for each in passes:
        seconds = "-" if each.seconds is None else f"{each.seconds:,.1f}"
        written = f"{each.written_bytes / GIGA:,.3f}" if each.written_bytes else "-"
        table.add_row(each.label, f"{each.read_bytes / GIGA:,.3f}", written, seconds)
    return table


def summary(
    plan: MergePlan, output: Path | None, passes: Sequence[PassEstimate], workers: int
) -> list[str]:
    """The plan in words."""
    method = method_of(plan.recipe)
    reads = sum(each.read_bytes for each in passes) / GIGA
    times = f"{len(passes)} passes" if len(passes) > 1 else "1 pass"
    lines = [
        f"{plan.recipe.method.name} over {len(plan.models)} models: reads {reads:,.3f} GB in "
        f"{times}, writes {plan.output_bytes / GIGA:,.3f} GB.",
        f"Memory: at most {memory_ceiling(plan, workers) / MEBI:,.0f} MiB of private memory in "
        f"{workers} workers; the method takes {_unit_in_words(method.unit)}.",
        f"Time: {_about(passes)}",
        _disk(plan, output),
    ]
    if method.cost:
        lines.append(
            f"{plan.recipe.method.name} is dear: {method.cost}. That grows faster than what is "
            "read, so for large matrices the time is more than estimated."
        )
    if output is not None and (output / MANIFEST_NAME).is_file():
        lines.append(
            f"{output} holds a merge of this recipe; it is made again only if inputs changed."
        )
    return [*lines, "Everything fits."]


def _unit_in_words(unit: str) -> str:
    return {
        "element": "any piece of a tensor",
        "row": "whole rows of a tensor",
        "matrix": "whole tensors",
    }[unit]


def _about(passes: Sequence[PassEstimate]) -> str:
    known = [each.seconds for each in passes if each.seconds is not None]
    if len(known) < len(passes):
        return "unknown, because the trial work, by which it is estimated, failed here."
    return (
        f"about {_in_words(sum(known))} on idle cores, starting up apart. An estimate, from a "
        "moment's trial work here."
    )


def _in_words(seconds: float) -> str:
    if seconds < 1:
        return "a second"
    if seconds < 100:
        return f"{float(f'{seconds:.1g}' if seconds < 10 else f'{seconds:.2g}'):.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def _disk(plan: MergePlan, output: Path | None) -> str:
    place = next(path for path in (output or Path("x")).absolute().parents if path.is_dir())
    free = f"{shutil.disk_usage(place).free / GIGA:,.1f} GB are free"
    if output is None:
        return f"Disk: {free} in this folder. Name OUT to check the disk that the result goes to."
    there = sum(path.stat().st_size for path in staging_path(output).glob("*.safetensors"))
    resumed = f", and {there / GIGA:,.3f} GB are there from an interrupted merge" if there else ""
    return f"Disk: {free} where {output} goes{resumed}."
