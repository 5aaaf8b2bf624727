"""What the files of a run folder tell about the run."""

import json
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nan_merge.errors import DataError
from pipelines.events import EVENTS_NAME, EventLog, read_events
from pipelines.progress import RunProgress
from pipelines.run_folder import sole_writer
from pipelines.status import read_status
from pipelines.status_view import status_command

TASK = {"stage": "Merging", "task": "merge", "attempt": 1}


@pytest.fixture
def events(tmp_path: Path) -> EventLog:
    return EventLog(tmp_path / EVENTS_NAME)


def in_the_middle(events: EventLog) -> None:
    """A run that was in the middle of merging: one task done, one lost and begun again."""
    events.write("run begun", pid=7, host="far", name="mine", seed=3)
    events.write("stage begun", stage="Merging", total=3, unit="tasks")
    for place in (0, 1):
        events.write("task begun", **TASK, place=place, host=f"node{place}", pid=10, report="r")
    events.write("task done", **TASK, place=0, seconds=2.0, bytes=2_000_000)
    events.write("task again", **TASK, place=1, reason="its worker or node was lost", wait=0)
    events.write("task begun", **TASK, place=1, host="node2", pid=11, report="merge-00001-1")


def shown(folder: Path, as_json: bool = False) -> str:
    console = Console(file=StringIO(), width=120)
    status_command(folder, console, as_json)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_run_whose_driver_is_gone_is_interrupted(tmp_path: Path, events: EventLog):
    in_the_middle(events)
    status = read_status(tmp_path)
    (stage,) = status.stages
    assert (status.state, status.name, status.seed) == ("interrupted", "mine", 3)
    assert (stage.state, stage.done, stage.total, stage.again) == ("interrupted", 1, 3, 1)
    assert stage.num_bytes == 2_000_000
    assert [(task.place, task.host, task.pid) for task in stage.running] == [(1, "node2", 11)]
    text = shown(tmp_path)
    assert "interrupted" in text
    assert "1/3 tasks" in text
    assert "its worker or node was lost" in text
    assert "Run the same command again" in text


def test_a_run_with_a_living_driver_is_running_and_tells_bytes(tmp_path: Path, events: EventLog):
    in_the_middle(events)
    (tmp_path / ".progress").mkdir()
    report = '{"node": "n", "host": "node2", "pid": 11}\n500\n250\n'
    (tmp_path / ".progress" / "merge-00001-1").write_text(report)
    with sole_writer(tmp_path):
        status = read_status(tmp_path)
        assert status.state == "running"
        assert status.stages[0].running[0].num_bytes == 750
        assert "last sign" in status.driver
    assert read_status(tmp_path).state == "interrupted"


def test_why_a_run_failed(tmp_path: Path, events: EventLog):
    with suppress(DataError), events.run("mine", 0), events.stage("Merging", 1, "tasks"):
        raise DataError("model [x] is broken. Mend it.")
    status = read_status(tmp_path)
    assert (status.state, status.error) == ("failed", "model [x] is broken. Mend it.")
    assert status.stages[0].state == "failed"
    assert "error: model [x] is broken. Mend it." in shown(tmp_path)


def test_a_run_that_was_interrupted_says_so(tmp_path: Path, events: EventLog):
    with suppress(KeyboardInterrupt), events.run("mine", 0):
        raise KeyboardInterrupt
    text = shown(tmp_path)
    assert "error: interrupted by Ctrl-C" in text
    assert "Run the same command again" in text


def test_only_the_last_run_counts_even_after_half_a_line(tmp_path: Path, events: EventLog):
    in_the_middle(events)
    with (tmp_path / EVENTS_NAME).open("a") as file:
        file.write('{"time": 1, "event": "task do')
    with events.run("mine", 0):
        pass
    status = read_status(tmp_path)
    assert (status.state, status.stages) == ("done", [])


def test_checkpoints_and_predictions_are_counted(tmp_path: Path, events: EventLog):
    in_the_middle(events)
    whole, partial = tmp_path / "checkpoints" / "ta", tmp_path / "checkpoints" / ".ties.partial"
    (partial / ".journal").mkdir(parents=True)
    (partial / ".journal" / "model-00001-of-00002.safetensors.json").touch()
    whole.mkdir()
    for name in ("model.safetensors", "merge_manifest.json"):
        (whole / name).touch()
    (tmp_path / "predictions" / "ta").mkdir(parents=True)
    (tmp_path / "predictions" / "ta" / "digits.jsonl").touch()
    read: dict[str, Any] = json.loads(shown(tmp_path, as_json=True))
    found = {merge["folder"]: (merge["state"], merge["files"]) for merge in read["merges"]}
    assert found == {"ta": ("done", 1), "ties": ("interrupted", 1)}
    assert read["predictions"] == {"ta": 1}


def test_a_folder_without_a_run_says_so(tmp_path: Path):
    with pytest.raises(DataError, match=r"holds no run: events.jsonl cannot be read"):
        read_status(tmp_path)


@pytest.mark.parametrize(
    "line", ['{"event": "run begun"}', '{"event": "run begun", "time": 1, "seed": "x"}']
)
def test_events_that_make_no_sense_are_called_damaged(tmp_path: Path, line: str):
    (tmp_path / EVENTS_NAME).write_text(line + "\n")
    with pytest.raises(DataError, match=r"events.jsonl is damaged \((Key|Value)Error"):
        read_status(tmp_path)


def test_passwords_do_not_reach_the_log(tmp_path: Path, events: EventLog):
    events.write("run failed", error="cannot reach http://me:secret@host/")
    assert [event["error"] for event in read_events(tmp_path / EVENTS_NAME)] == [
        "cannot reach http://***@host/"
    ]


def test_a_log_hears_of_a_long_stage_now_and_then(tmp_path: Path, monkeypatch: Any):
    clock = [0.0]
    monkeypatch.setattr("pipelines.progress.time.monotonic", lambda: clock[0])
    console = Console(file=StringIO(), width=120)
    progress = RunProgress(console)
    with progress.stage("Merging", 4, "tasks", num_bytes=4_000_000) as bar:
        clock[0] = 10.0
        bar.work(500_000, 2)
        clock[0] = 40.0
        bar.advance()
        bar.work(1_000_000, 1)
        bar.work(1_000_001, 1)
        clock[0] = 160.0
    assert isinstance(console.file, StringIO)
    assert console.file.getvalue().splitlines() == [
        "Merging ...",
        "Merging: 1/4 tasks, 500.0 kB of 4.0 MB, 12.5 kB/s, 2 workers, 5 min left",
        "Merging: done in 160.0 s, 25.0 kB/s",
    ]
