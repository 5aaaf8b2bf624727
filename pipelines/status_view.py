"""The status of a run for people, as tables, or for programs, as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from pipelines.status import MergeStatus, RunStatus, StageStatus, State, read_status


def status_command(folder: Path, console: Console, as_json: bool) -> None:
    """Print the status of a run folder.

    Raises:
        DataError: If no run was ever begun there.
    """
    status = read_status(folder)
    if as_json:
        text = json.dumps(asdict(status), indent=2, ensure_ascii=False)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(status_view(status))


def status_view(status: RunStatus) -> RenderableType:
    """The status as tables."""
    parts: list[RenderableType] = [
        f"[bold]{escape(status.name)}[/] (seed {status.seed}) in {escape(status.folder)}: "
        f"{_colored(status.state)}, {status.seconds:.0f} s; {escape(status.driver)}"
    ]
    if status.error:
        parts.append(f"[red]error:[/] {escape(status.error)}")
    if status.state in ("interrupted", "failed"):
        parts.append("Run the same command again: it continues with what is left.")
    parts.append(_stage_table(status.stages))
    if any(stage.running for stage in status.stages):
        parts.append(_running_table(status.stages))
    for stage in status.stages:
        parts += [f"done again in {escape(stage.name)}: {escape(r)}" for r in stage.reasons]
    if status.merges:
        parts.append(_merge_table(status.merges))
    if status.predictions:
        counts = ", ".join(f"{model}: {n}" for model, n in status.predictions.items())
        parts.append(f"Benchmarks with predictions: {escape(counts)}")
    return Group(*parts)


def _colored(state: State) -> str:
    colors = {"done": "green", "running": "cyan", "failed": "red", "interrupted": "yellow"}
    return f"[{colors[state]}]{state}[/]"


def _stage_table(stages: Iterable[StageStatus]) -> Table:
    table = Table(title="Stages of the last run", title_justify="left")
    for column in ("stage", "state", "done", "again", "read", "seconds"):
        table.add_column(column, justify="left" if column in ("stage", "state") else "right")
    for stage in stages:
        counted = stage.unit in ("tasks", "samples")
        table.add_row(
            escape(stage.name),
            _colored(stage.state),
            f"{stage.done}/{stage.total} {stage.unit}" if counted else "",
            str(stage.again or ""),
            decimal(stage.num_bytes) if stage.num_bytes > 1000 else "",
            f"{stage.seconds:.1f}",
        )
    return table


def _running_table(stages: Iterable[StageStatus]) -> Table:
    table = Table(title="Tasks and model actors that have not ended", title_justify="left")
    for column in ("task or model", "where", "seconds", "done"):
        table.add_column(
            column, justify="left" if column in ("task or model", "where") else "right"
        )
    for stage in stages:
        for task in stage.running:
            where = f"{task.host}, process {task.pid}"
            label = f"{task.task} {task.place + 1}"
            done = decimal(task.num_bytes) if task.num_bytes else ""
            table.add_row(escape(label), escape(where), f"{task.seconds:.0f}", done)
    return table


def _merge_table(merges: Iterable[MergeStatus]) -> Table:
    table = Table(title="Merged checkpoints", title_justify="left")
    table.add_column("folder")
    table.add_column("state")
    table.add_column("finished files", justify="right")
    for merge in merges:
        table.add_row(escape(merge.folder), _colored(merge.state), str(merge.files))
    return table
