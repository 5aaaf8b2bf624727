"""Runs sent to a real cluster on this machine, with token authentication, ports of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from cluster.jobs import JobClient, JobEnd, dashboard_url
from nan_merge.errors import NanMergeError
from pipelines.cli import app
from pipelines.results import read_results
from pipelines.submit import _follow, exit_code_of
from tests.submitted_runs import RUN

ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdef" * 4


# --- addresses, ends, logs: no cluster ---


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("head", "http://head:8265"),
        ("head:80", "http://head:80"),
        ("http://[::1]:99/", "http://[::1]:99"),
        ("https://ray.example/a/", "https://ray.example:443/a"),
    ],
)
def test_an_address_may_leave_out_scheme_and_port(address: str, url: str):
    assert dashboard_url(address) == url


@pytest.mark.parametrize("address", ["ray://head:10001", "auto", "local", "http://", "head:x"])
def test_what_is_no_dashboard_is_refused(address: str):
    with pytest.raises(NanMergeError, match="--address"):
        dashboard_url(address)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (JobEnd("SUCCEEDED", 0, ""), 0),
        (JobEnd("FAILED", 2, ""), 2),
        (JobEnd("FAILED", -9, ""), 137),
        (JobEnd("FAILED", 0, ""), 2),
    ],
)
def test_the_exit_code_is_the_jobs(end: JobEnd, code: int):
    assert exit_code_of(end, "job") == code


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (JobEnd("FAILED", 127, ""), "no command `nan-merge`. Install"),
        (JobEnd("STOPPED", None, ""), "job was stopped. Submit the same run again"),
        (JobEnd("FAILED", None, "no node\nhas 9 CPUs"), "did not run: no node has 9 CPUs"),
    ],
)
def test_a_job_that_did_not_run_says_why(end: JobEnd, words: str):
    with pytest.raises(NanMergeError, match=words):
        exit_code_of(end, "job")


def test_a_log_that_breaks_off_goes_on_where_it_stopped(monkeypatch):
    logs = iter([["one\n", "tw"], ["one\ntwo\n", "three\n"]])

    class Ray:
        async def tail_job_logs(self, job: str):
            texts = next(logs)
            for text in texts:
                yield text
            if texts[-1] == "tw":
                raise RuntimeError("WebSocket connection closed unexpectedly")

        def get_job_info(self, job: str):
            status = SimpleNamespace(is_terminal=lambda: True, value="SUCCEEDED")
            return SimpleNamespace(status=status, driver_exit_code=0, message="")

    client = object.__new__(JobClient)
    client.url, client._ray = "http://head:8265", Ray()
    monkeypatch.setattr("cluster.jobs.time.sleep", lambda seconds: None)
    written: list[str] = []
    assert client.follow("job", written.append).status == "SUCCEEDED"
    assert "".join(written) == "one\ntwo\nthree\n"


def test_a_cluster_that_is_gone_ends_the_following(monkeypatch):
    class Ray:
        async def tail_job_logs(self, job: str):
            raise ConnectionError("refused")
            yield ""

    client = object.__new__(JobClient)
    client.url, client._ray = "http://head:8265", Ray()
    monkeypatch.setattr("cluster.jobs.time.sleep", lambda seconds: None)
    with pytest.raises(NanMergeError, match="did not do what was asked: refused"):
        client.follow("job", print)


def test_ctrl_c_says_how_to_go_on_and_ends_as_an_interrupt():
    class Client:
        url = "http://head:8265"

        def follow(self, job: str, write: object) -> JobEnd:
            raise KeyboardInterrupt

    console = Console(file=StringIO(), width=200)
    assert _follow(Client(), "job7", console) == 130  # type: ignore[arg-type]
    said = console.file.getvalue()  # type: ignore[union-attr]
    assert "The job goes on without this command." in said
    assert "ray job stop --address http://head:8265 job7" in said


# --- against a cluster -------------------------------------------------------------------------


@dataclass(frozen=True)
class HeadNode:
    url: str
    folder: Path


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(120):
        if process.poll() is not None:
            break
        try:
            JobClient(url)
            return
        except NanMergeError:
            time.sleep(1)
    raise AssertionError(f"the cluster did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def head() -> Iterator[HeadNode]:
    """A head node of its own, with token authentication, on the loopback address."""
    # A short path: the name of a socket below it may have 107 letters.
    folder = Path(mkdtemp(prefix="nm-", dir="/tmp"))
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    names = (*names, "metrics-export-port", "ray-client-server-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    environment = os.environ | {
        "HOME": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "NAN_MERGE_CACHE": str(folder / "hashes"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("RAY_ADDRESS", None)
    command = [
        *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"),
        *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--num-cpus=2"),
        *("--include-dashboard=true", "--include-log-monitor=false"),
        *(f"--temp-dir={folder}", "--object-store-memory=100000000"),
        *(f"--{name}={port}" for name, port in ports.items()),
    ]
    log = folder / "start.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    url = f"http://127.0.0.1:{ports['dashboard-port']}"
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_AUTH_TOKEN", TOKEN)
    try:
        wait_for(url, process, log)
        yield HeadNode(url, folder)
    finally:
        patch.undo()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            # Whatever is left of the process group that the head node was started as. Not with
            # the command `kill`, some of which take a negative id for all processes there are.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            rmtree(folder, ignore_errors=True)


def submit(head: HeadNode, run: dict[str, object], *arguments: str):
    file = head.folder / "run-file.yaml"
    file.write_text(yaml.safe_dump(run))
    storage = ("--storage", str(head.folder / "shared"))
    return CliRunner().invoke(
        app, ["submit", str(file), "--address", head.url, *storage, *arguments]
    )


@pytest.mark.ray
def test_a_run_that_fails_there_fails_here_with_its_message(head: HeadNode):
    content = {**RUN, "experts": None, "base": "./gone", "models": ["./a"], "clip": "./clip"}
    result = submit(head, content)
    assert result.exit_code == 2, result.output
    assert f"No checkpoint at {head.folder}/shared/clip" in result.output


@pytest.mark.ray
def test_no_wait_returns_at_once_and_says_how_to_go_on(head: HeadNode):
    content = {**RUN, "experts": None, "base": "./gone", "models": ["./a"], "clip": "./clip"}
    result = submit(head, content, "--no-wait")
    assert result.exit_code == 0, result.output
    job = result.output.split()[1]
    assert f"ray job logs --follow --address {head.url} {job}" in result.output
    assert f"ray job stop --address {head.url} {job}" in result.output


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_leaves_the_job_running(head: HeadNode, tmp_path: Path):
    client = JobClient(head.url)
    job = client.submit("echo begun; sleep 3; echo over", tmp_path, "sleeper")
    seen: list[str] = []

    def interrupt(text: str) -> None:
        seen.append(text)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.follow(job, interrupt)
    assert "begun" in "".join(seen)
    after: list[str] = []
    assert client.follow(job, after.append).status == "SUCCEEDED"
    assert "over" in "".join(after)


@pytest.mark.ray
@pytest.mark.parametrize(
    ("token", "words"), [("", "wants an authentication token"), ("0" * 64, "refuses this machine")]
)
def test_a_token_that_is_missing_or_wrong_is_told(head: HeadNode, monkeypatch, token, words):
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/nowhere")
    with pytest.raises(NanMergeError, match=words) as caught:
        JobClient(head.url)
    assert "ray get-auth-token" in str(caught.value)


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_without_nan_merge_is_told(head: HeadNode, tmp_path: Path):
    client = JobClient(head.url)
    job = client.submit("nan-merge-that-is-not-there run", tmp_path, "missing")
    with pytest.raises(NanMergeError, match=r"no command `nan-merge`\. Install"):
        exit_code_of(client.follow(job, print), job)


@pytest.mark.ray
def test_a_cluster_whose_ray_is_too_old_is_told(head: HeadNode, monkeypatch):
    monkeypatch.setattr("cluster.jobs.OLDEST_RAY", (99, 0))
    with pytest.raises(NanMergeError, match=r"runs Ray 2\..* needs 99\.0 or newer"):
        JobClient(head.url)


def test_an_address_where_nothing_answers_is_told_at_once():
    (port,) = free_ports(1)
    with pytest.raises(NanMergeError, match=rf"Nothing answers at http://127.0.0.1:{port}.*ssh -L"):
        JobClient(f"127.0.0.1:{port}")


@pytest.mark.ray
@pytest.mark.slow  # trains, merges and scores on the cluster: about a minute
def test_a_run_is_sent_followed_and_finished_there(head: HeadNode):
    result = submit(head, RUN, "seed=5")
    assert result.exit_code == 0, result.output
    assert "Average" in result.output
    assert (head.folder / "shared" / "runs" / "tiny" / "results.json").is_file()


@pytest.mark.ray
@pytest.mark.slow  # trains, searches and scores on the cluster: about a minute
def test_a_sweep_is_sent_and_finished_there(head: HeadNode):
    entry = {"method": "task_arithmetic", "vary": {"coefficients.lambda": [0.3, 0.6]}}
    run = {**RUN, "name": "tiny-sweep", "merges": [], "sweep": {"merges": [entry], "keep": "none"}}
    result = submit(head, run)
    assert result.exit_code == 0, result.output
    folder = head.folder / "shared" / "runs" / "tiny-sweep"
    assert len(read_results(folder).sweep) == 2
    assert (folder / "sweep.json").is_file()


@pytest.mark.ray
@pytest.mark.slow  # merges, and asks four models on the cluster: about a minute
@pytest.mark.timeout(900)
def test_a_run_over_language_models_finds_its_models_and_data_on_the_storage(head: HeadNode):
    pytest.importorskip("transformers", reason="transformers is not installed")
    from tests.benchmark_folders import write_gsm8k
    from tests.language_checkpoints import make_tiny_llama

    storage = head.folder / "shared"
    for seed, name in enumerate(("base", "math", "chat")):
        make_tiny_llama(storage / "models" / name, seed=seed)
    write_gsm8k(storage / "data" / "gsm8k")
    (storage / "own.yaml").write_text(
        "name: sums\nquestions: sums.jsonl\nprompt: '{{ a }} plus 1?'\ngold: '{{ b }}'\n"
        "choices: [' 2', ' 3']\n"
    )
    (storage / "data" / "sums.jsonl").write_text('{"a": 1, "b": 2}\n{"a": 2, "b": 3}\n')
    run = {
        "name": "tiny-language",
        "base": "./models/base",
        "models": ["./models/math", "./models/chat"],
        "merges": [{"name": "TA", "method": "task_arithmetic"}],
        "evaluate": {
            "benchmarks": [{"name": "gsm8k", "max_tokens": 4}, "own.yaml"],
            "backend": {"name": "transformers", "dtype": "float32", "device": "cpu"},
            "data": "data",
        },
        "track": {"mlflow": False},
    }
    result = submit(head, run)
    assert result.exit_code == 0, result.output
    results = read_results(storage / "runs" / "tiny-language")
    assert results.models() == ["Pretrained", "math", "chat", "TA"]
    assert results.benchmarks() == ["gsm8k", "sums"]
