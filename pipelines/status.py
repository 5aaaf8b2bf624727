"""What a run has done, is doing and why it failed: from the files of its folder alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cluster.task_report import TaskReport
from nan_merge.errors import DataError
from nan_merge.manifest import MANIFEST_NAME
from nan_merge.ownership import age_seconds, is_alive, read_owner
from nan_merge.shard import JOURNAL
from pipelines.events import EVENTS_NAME, read_events
from pipelines.run_folder import OWNER_NAME
from pipelines.workers import PROGRESS_FOLDER

ENDS = ("task done", "task failed", "task again", "actor died", "actor stalled", "actor stopped")
State = Literal["done", "running", "failed", "interrupted"]


@dataclass
class RunningTask:
    """A task that was begun and has not ended, or a model actor that is there.

    Attributes:
        task: Its label; of an actor, the model that it serves.
        place: Its place in the stage, or the actor's number, from 0.
        host: Where it runs.
        pid: Its process there.
        seconds: How long it has run.
        num_bytes: What it says it has done.
    """

    task: str
    place: int
    host: str
    pid: int
    seconds: float
    num_bytes: int


@dataclass
class StageStatus:
    """One stage of the last run.

    Attributes:
        name: What it does.
        state: Whether it goes on.
        unit: What ``total`` counts.
        total: Steps that it takes.
        done: Tasks that are done, or samples that are answered.
        again: How often something was done again: a lost worker, failing storage, a stuck task.
        seconds: How long it took, or has taken.
        num_bytes: Read by the tasks that are done.
        error: Why it failed.
        reasons: Why things were done again, the last ones.
        running: What is under way.
    """

    name: str
    state: State
    unit: str
    total: int
    done: int = 0
    again: int = 0
    seconds: float = 0.0
    num_bytes: int = 0
    error: str = ""
    reasons: list[str] = field(default_factory=list)
    running: list[RunningTask] = field(default_factory=list)


@dataclass
class MergeStatus:
    """One merged checkpoint.

    Attributes:
        folder: Its folder's name.
        state: "done", or "running" or "interrupted" if only some files are.
        files: Files that are finished.
    """

    folder: str
    state: State
    files: int


@dataclass
class RunStatus:
    """What `nan-merge status` shows.

    Attributes:
        folder: The run folder.
        name: Of the run.
        seed: Of the run.
        state: "interrupted" if its driver is gone without a word.
        driver: Who runs it, or ran it last.
        seconds: How long the last run took, or has taken.
        error: Why it failed.
        stages: Of the last run; what earlier ones had finished is not done again and not here.
        merges: Checkpoints in the folder.
        predictions: Model's folder -> number of benchmarks with predictions.
    """

    folder: str
    name: str
    seed: int
    state: State
    driver: str
    seconds: float
    error: str = ""
    stages: list[StageStatus] = field(default_factory=list)
    merges: list[MergeStatus] = field(default_factory=list)
    predictions: dict[str, int] = field(default_factory=dict)


def read_status(folder: Path) -> RunStatus:
    """Read everything that the files of a run folder tell; changes nothing.

    Raises:
        DataError: If no run was ever begun there, or its events make no sense.
    """
    events = list(_last_run(folder))
    try:
        return _status_of(folder, events)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder / EVENTS_NAME} is damaged ({type(error).__name__}: {error}). Run the same "
            "command again: it continues with what is left, and begins a new record."
        ) from error


def _status_of(folder: Path, events: list[dict[str, Any]]) -> RunStatus:
    owner_path = folder / OWNER_NAME
    alive = is_alive(owner_path)
    begun = events[0]
    end = next((e for e in events if e["event"] in ("run done", "run failed")), None)
    gone: State = "running" if alive else "interrupted"
    until = time.time() if alive else events[-1].get("time", 0.0)
    status = RunStatus(
        folder=str(folder),
        name=str(begun.get("name", "")),
        seed=int(begun.get("seed", 0)),
        state=gone if end is None else "done" if end["event"] == "run done" else "failed",
        driver=f"process {begun.get('pid', '?')} on {begun.get('host', '?')}",
        seconds=end["seconds"] if end is not None else round(until - begun["time"], 1),
        error=end.get("error", "") if end is not None else "",
    )
    owner = read_owner(owner_path)
    if alive and owner is not None:
        age = age_seconds(owner_path)
        status.driver = f"process {owner.pid} on {owner.host}, last sign {age:.0f} s ago"
    status.stages = _stages(folder, events, status.state, until)
    status.merges = list(_merges(folder / "checkpoints", status.state))
    status.predictions = {
        path.name: len(list(path.glob("*.jsonl"))) for path in _folders(folder / "predictions")
    }
    return status


def _last_run(folder: Path) -> Iterator[dict[str, Any]]:
    """Events from the last beginning of a run on."""
    try:
        events = list(read_events(folder / EVENTS_NAME))
    except OSError as error:
        raise DataError(
            f"{folder} holds no run: {EVENTS_NAME} cannot be read ({error.strerror}). Name the "
            "folder that `nan-merge run` writes to, e.g. runs/quickstart."
        ) from error
    begins = [place for place, event in enumerate(events) if event["event"] == "run begun"]
    if not begins:
        raise DataError(f"{folder / EVENTS_NAME} tells of no run. Run `nan-merge run` again.")
    yield from events[begins[-1] :]


def _stages(
    folder: Path, events: Iterable[dict[str, Any]], run_state: State, until: float
) -> list[StageStatus]:
    stages: list[StageStatus] = []
    last: dict[str, StageStatus] = {}  # of each name: a stage may come again under its name
    begun: dict[str, float] = {}
    running: dict[tuple[str, int], dict[str, Any]] = {}
    for event in events:
        name, what = str(event.get("stage", "")), event["event"]
        if what == "stage begun":
            open_state: State = "running" if run_state == "running" else "interrupted"
            last[name] = StageStatus(name, open_state, event["unit"], event["total"])
            stages.append(last[name])
            begun[name] = event["time"]
        elif name in last:
            _take(last[name], what, event, running)
    for name, stage in last.items():
        if stage.state in ("running", "interrupted"):
            stage.seconds = round(until - begun[name], 1)
            mine = [event for (of, _), event in sorted(running.items()) if of == name]
            stage.running = [_running_task(folder, event, until) for event in mine]
    return stages


def _take(
    stage: StageStatus,
    what: str,
    event: dict[str, Any],
    running: dict[tuple[str, int], dict[str, Any]],
) -> None:
    """Let one event change what is known of its stage."""
    task = (stage.name, int(event.get("place", event.get("actor", -1))))
    if what == "task begun":
        running[task] = event
    elif what == "actor started":
        running[task] = {**event, "task": event["model"], "place": event["actor"]}
    elif what in ("model loading", "stolen") and task in running:
        running[task]["task"] = event["model"]
    elif what in ENDS:
        running.pop(task, None)
    if what in ("task done", "shard done"):
        stage.done += event.get("samples", 1)
        stage.num_bytes += event.get("bytes", 0)
    elif what in ("task again", "actor died", "actor stalled"):
        stage.again += 1
        reason = event.get("reason") or event.get("error") or what
        stage.reasons = [*stage.reasons[-2:], f"{event.get('task', '')}: {reason}".lstrip(": ")]
    elif what in ("stage done", "stage failed"):
        stage.state = "done" if what == "stage done" else "failed"
        stage.seconds, stage.error = event["seconds"], event.get("error", "")


def _running_task(folder: Path, event: dict[str, Any], until: float) -> RunningTask:
    report = TaskReport()
    if name := event.get("report"):
        report.read(folder / PROGRESS_FOLDER / Path(name).name)
    return RunningTask(
        task=event["task"],
        place=event["place"],
        host=str(event.get("host", "")),
        pid=int(event.get("pid", 0)),
        seconds=round(until - event["time"], 1),
        num_bytes=report.num_bytes,
    )


def _merges(checkpoints: Path, run_state: State) -> Iterator[MergeStatus]:
    for path in _folders(checkpoints):
        if (path / MANIFEST_NAME).is_file():
            yield MergeStatus(path.name, "done", len(list(path.glob("*.safetensors"))))
        elif path.name.startswith(".") and path.name.endswith(".partial"):
            state: State = "running" if run_state == "running" else "interrupted"
            files = len(list((path / JOURNAL).glob("*.safetensors.json")))
            yield MergeStatus(path.name[1:].removesuffix(".partial"), state, files)


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
