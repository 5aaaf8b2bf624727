"""What is tried again and what is not, without waiting for real faults; reports of tasks."""

import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.flight import POLL_SECONDS, Watch
from cluster.storage_errors import StorageError, as_storage_error
from cluster.task_options import TaskFolders, TaskOptions
from cluster.task_report import TaskReport
from cluster.tasks import run_streams, run_tasks
from nan_merge.errors import CheckpointError, NanMergeError, OutputError
from nan_merge.tasks import Task, progress_to, report_progress, run_serially

QUICK = TaskOptions(storage_waits_seconds=(0.0, 0.0))


def count(path: str) -> int:
    """How often it was called before; in a file, because workers forget."""
    before = len(Path(path).read_text()) if Path(path).exists() else 0
    Path(path).write_text("x" * (before + 1))
    return before


def read_from_storage(path: str, failures: int, code: int) -> str:
    if count(path) < failures:
        try:
            raise OSError(code, os.strerror(code), "weights.safetensors")
        except OSError as error:
            raise CheckpointError("Cannot read weights.safetensors.") from error
    return "read"


def stream_from_storage(path: str, failures: int) -> Any:
    yield "first"
    yield read_from_storage(path, failures, errno.EIO)


def refuse(path: str) -> None:
    count(path)
    raise OutputError("The disk is full. Free some space.")


def report_and_print(num_bytes: int, text: str) -> str:
    report_progress(num_bytes)
    os.write(1, text.encode())
    return os.environ["CUDA_VISIBLE_DEVICES"]


def lose_reports(folder: str) -> str:
    """The storage of the reports is away while the task goes on."""
    shutil.rmtree(folder)
    time.sleep(2 * POLL_SECONDS + 1)
    return "done"


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET])
def test_a_passing_error_of_the_storage_is_found_among_causes(code: int):
    try:
        read_from_storage(os.devnull, 1, code)
    except CheckpointError as error:
        found = as_storage_error(error)
    assert found is not None
    assert found.what == f"{os.strerror(code)} (weights.safetensors)"
    assert str(found.original) == "Cannot read weights.safetensors."


@pytest.mark.parametrize(
    "error",
    [CheckpointError("x is cut short"), OSError(errno.ENOSPC, "full"), FileNotFoundError(2, "no")],
)
def test_errors_that_will_not_pass_are_no_storage_errors(error: Exception):
    assert as_storage_error(error) is None


def test_a_storage_error_travels_whole():
    import pickle

    found = pickle.loads(pickle.dumps(StorageError("gone (x)", CheckpointError("Cannot read x."))))
    assert (found.what, str(found.original)) == ("gone (x)", "Cannot read x.")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_two_cpus")
class TestOnRay:
    def test_storage_that_comes_back_is_enough(self, tmp_path: Path):
        task = Task("read", read_from_storage, (str(tmp_path / "n"), 2, errno.EIO), 1)
        assert run_tasks([task], None, QUICK) == ["read"]

    def test_a_stream_is_sent_again_from_its_beginning(self, tmp_path: Path):
        seen: list[str] = []
        task = Task("read", stream_from_storage, (str(tmp_path / "n"), 1), 1)
        run_streams([task], lambda _, item: seen.append(item), QUICK)
        assert seen == ["first", "first", "read"]

    def test_storage_that_stays_away_ends_it(self, tmp_path: Path):
        task = Task("read", read_from_storage, (str(tmp_path / "n"), 99, errno.ESTALE), 1)
        message = r"The storage failed 3 times under `read`.*Cannot read weights"
        with pytest.raises(NanMergeError, match=message):
            run_tasks([task], None, QUICK)
        assert len((tmp_path / "n").read_text()) == 3

    def test_a_users_error_is_never_tried_again(self, tmp_path: Path):
        with pytest.raises(OutputError, match=r"^The disk is full\. Free some space\.$"):
            run_tasks([Task("write", refuse, (str(tmp_path / "n"),), 1)], None, QUICK)
        assert len((tmp_path / "n").read_text()) == 1

    def test_a_task_that_no_node_can_run_is_told_with_what_they_have(self):
        options = TaskOptions(num_cpus=3, resources={"near_disk": 1}, place_seconds=0.5)
        message = "one needs 3 CPU, 1 near_disk, and the nodes have 2 CPU, 0 near_disk"
        with pytest.raises(NanMergeError, match=message):
            run_tasks([Task("merge", print, (), 1)], None, options)

    def test_reports_that_cannot_be_read_cost_no_result(self, tmp_path: Path):
        progress = tmp_path / "progress"
        progress.mkdir()
        watch = Watch(TaskFolders(progress))
        assert run_tasks([Task("a", lose_reports, (str(progress),), 1)], None, None, watch) == [
            "done"
        ]

    def test_tasks_tell_where_they_run_what_they_did_and_what_they_print(self, tmp_path: Path):
        folders = TaskFolders(tmp_path / "progress", tmp_path / "logs")
        folders.progress.mkdir()
        (tmp_path / "logs").mkdir()
        events: list[tuple[str, dict[str, Any]]] = []
        watch = Watch(folders, lambda name, details: events.append((name, details)))
        tasks = [
            Task("a/b", report_and_print, (1 << 24, "hello\n"), 1 << 25),
            Task("a/b", report_and_print, (5, ""), 9),
        ]
        # A task that was given no GPU sees none.
        assert run_tasks(tasks, None, None, watch) == ["", ""]
        begun = [details for name, details in events if name == "task begun"]
        assert {details["place"] for details in begun} == {0, 1}
        assert all(details["pid"] != os.getpid() and details["host"] for details in begun)
        done = {d["place"]: d["bytes"] for name, d in events if name == "task done"}
        assert done == {0: 1 << 25, 1: 9}
        assert [path.name for path in (tmp_path / "logs").iterdir()] == ["a-b-00000-1.log"]
        assert (tmp_path / "logs" / "a-b-00000-1.log").read_text() == "hello\n"
        assert list(folders.progress.iterdir()) == []


def test_a_report_is_read_as_it_grows_and_only_in_whole_lines(tmp_path: Path):
    path, report = tmp_path / "report", TaskReport()
    assert not report.read(path)
    path.write_text('{"node": "n", "host": "h", "pid": 1}\n10\n2')
    assert report.read(path)
    assert (report.num_bytes, len(report.starts)) == (10, 1)
    with path.open("a") as file:
        file.write("0\n")
    assert report.read(path)
    assert report.num_bytes == 30
    with path.open("a") as file:
        file.write('{"node": "m", "host": "h", "pid": 2}\n7\n')
    report.read(path)
    assert (report.num_bytes, [start["node"] for start in report.starts]) == (7, ["n", "m"])
    assert not report.read(path)


def test_progress_goes_nowhere_unless_asked_for():
    seen: list[int] = []
    report_progress(1)
    with progress_to(seen.append):
        run_serially([Task("report", report_progress, (2,), 2)])
    report_progress(3)
    assert seen == [2]
