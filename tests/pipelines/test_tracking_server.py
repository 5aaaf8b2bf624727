"""Against a real MLflow server: recording, registering, and what waits while it is down or slow."""

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from nan_merge.errors import ConfigError, DataError
from pipelines.config import RunConfig, Track
from pipelines.outbox import PENDING_NAME, read_pending
from pipelines.records import safe_key
from pipelines.results import RunResults, SweepPoint, write_results
from pipelines.sweep_records import find_record
from pipelines.track_sync import mark_passed, sync_command, sync_run, usable_uri
from pipelines.tracking import TrackingError, track_run
from tests.mlflow_server import HAS_AUTHENTICATION, PASSWORD, USER, Server, free_port, serving

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
MANIFEST = {
    "merge_key": "a1b2",
    "recipe": {"method": {"name": "ties"}},
    "fingerprints": [{"name": "base", "fingerprint": "f0"}, {"name": "a", "fingerprint": "f1"}],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(autouse=True)
def no_login_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")


def finished_run(results: RunResults, folder: Path, track: Track) -> dict[str, dict[str, Path]]:
    """A run folder as `nan-merge run` leaves it; the files that go with its models."""
    write_results(results, folder)
    (folder / "plots").mkdir()
    (folder / "plots" / "accuracy.svg").write_text("<svg/>")
    (folder / "report.html").write_text("<html/>")
    (folder / "comparison.json").write_text("{}")
    config = {
        "name": results.name,
        "base": "b",
        "models": ["m"],
        "evaluate": {"benchmarks": ["digits"]},
        "track": track.model_dump(),
    }
    text = RunConfig.model_validate(config).text()
    (folder / "config.yaml").write_text(text)
    manifests, predictions, checkpoints = {}, {}, {}
    for model in results.models():
        predictions[model] = folder / "predictions" / model
        predictions[model].mkdir(parents=True)
        for benchmark in results.benchmarks():
            (predictions[model] / f"{benchmark}.jsonl").write_text(f"{model} {benchmark}\n")
        if model != "base":
            checkpoints[model] = folder / "checkpoints" / model
            checkpoints[model].mkdir(parents=True)
            manifests[model] = checkpoints[model] / "merge_manifest.json"
            manifests[model].write_text(json.dumps(MANIFEST))
            (checkpoints[model] / "model.safetensors").write_text("weights")
            (checkpoints[model] / "config.json").write_text("{}")
    return {"manifests": manifests, "predictions": predictions, "checkpoints": checkpoints}


@pytest.fixture
def swept(tiny: RunResults, request: pytest.FixtureRequest) -> RunResults:
    """Two merges of which the second was selected; a name of its own for every test."""
    from pipelines.results import MergeSummary

    points = {
        name: SweepPoint("M", {"coefficients.lambda": scale}, dev, 0.01, dev, dev > 0.7)
        for name, scale, dev in (("TA", 0.3, 0.69), ("TIES", 0.5, 0.72))
    }
    merges = tuple(
        MergeSummary(
            name, "ties", {"a": 2.0}, "weights", {"a": 1.0}, {"a": 0.3}, 0.3, f"checkpoints/{name}"
        )
        for name in points
    )
    facts = {"digest of a": "0123456789abcdef", "git commit": "c0ffee with changed files"}
    name = request.node.name.replace("[", "-").replace("]", "")
    return replace(tiny, name=name, sweep=points, merges=merges, facts=facts)


def client_of(server: Server):
    from mlflow.tracking import MlflowClient

    return MlflowClient(server.url, registry_uri=server.url)


def runs_of(client, experiment: str) -> dict[str, list]:
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id], max_results=1000) if found else []
    return {
        kind: [run for run in runs if run.data.tags["nan_merge.kind"] == kind]
        for kind in ("run", "model", "benchmark")
    }


def test_a_server_holds_the_whole_run(server: Server, swept: RunResults, tmp_path: Path):
    track = Track(uri=server.url)
    files = finished_run(swept, tmp_path, track)
    shown = track_run(swept, tmp_path, track, **files)
    assert PASSWORD not in shown
    client = client_of(server)
    runs = runs_of(client, swept.name)
    assert {kind: len(found) for kind, found in runs.items()} == {
        "run": 1,
        "model": 3,
        "benchmark": 6,
    }
    assert {run.info.status for found in runs.values() for run in found} == {"FINISHED"}
    # The page shows how long a run took: not how long it took to record it.
    lengths = {r.info.end_time - r.info.start_time for found in runs.values() for r in found}
    assert lengths == {0}
    (parent,) = runs["run"]
    assert parent.data.tags["mlflow.source.git.commit"] == "c0ffee"
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    wanted = {"report.html", "environment.txt", "plots", "config.yaml", "comparison.json"}
    assert wanted <= artifacts
    child = next(run for run in runs["model"] if run.info.run_name == "TIES")
    assert child.data.metrics["dev/average"] == 0.72
    assert child.data.params["sweep/coefficients.lambda"] == "0.5"
    assert child.data.params["fingerprint/base"] == "f0"
    assert json.loads(child.data.params["recipe"]) == {"method": {"name": "ties"}}
    of_child = [
        r for r in runs["benchmark"] if r.data.tags["mlflow.parentRunId"] == child.info.run_id
    ]
    assert {run.info.run_name for run in of_child} == {"a", "b"}
    on_a = next(run for run in of_child if run.info.run_name == "a")
    assert on_a.data.metrics == {"top1": 0.64, "top1_se": 0.06, "num_samples": 100}
    (dataset,) = on_a.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("a", "0123456789abcdef")
    local = client.download_artifacts(on_a.info.run_id, "predictions/a.jsonl", str(tmp_path))
    assert Path(local).read_text() == "TIES a\n"
    assert not (server.folder / "mlruns").exists()  # the server keeps the files, not the client


@pytest.mark.skipif(not HAS_AUTHENTICATION, reason="Flask-WTF is not installed")
def test_a_server_that_refuses_is_named_and_the_record_waits(
    server: Server, swept: RunResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    track = Track(uri=server.url.replace(PASSWORD, "wrong-password"))
    files = finished_run(swept, tmp_path, track)
    with pytest.raises(
        TrackingError, match=r"MLflow at http://\*\*\*@127.* could not record"
    ) as caught:
        track_run(swept, tmp_path, track, **files)
    assert "track sync" in str(caught.value) and "wrong-password" not in str(caught.value)
    text = (tmp_path / PENDING_NAME).read_text()
    assert "wrong-password" not in text and USER not in text
    with pytest.raises(TrackingError, match=r"401|[Nn]ot authenticated|[Uu]nauthorized"):
        sync_run(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    assert sync_run(tmp_path) == server.bare_url
    assert len(runs_of(client_of(server), swept.name)["benchmark"]) == 6
    assert not (tmp_path / PENDING_NAME).exists()


def test_a_server_that_is_down_loses_nothing(server: Server, swept: RunResults, tmp_path: Path):
    track = Track(uri=f"http://127.0.0.1:{free_port()}")
    files = finished_run(swept, tmp_path, track)
    begun = time.monotonic()
    with pytest.raises(TrackingError, match="waits there"):
        track_run(swept, tmp_path, track, **files)
    assert time.monotonic() - begun < 30
    console = Console(file=StringIO(), width=200)
    sync_command([tmp_path], server.url, console)
    assert isinstance(console.file, StringIO)
    assert (
        f"is recorded at http://{'***@' if HAS_AUTHENTICATION else ''}{server.host}"
        in console.file.getvalue()
    )
    assert len(runs_of(client_of(server), swept.name)["model"]) == 3
    assert sync_run(tmp_path) == ""


def test_a_server_that_does_not_answer_is_left_alone(
    swept: RunResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipelines.tracking.HEALTH_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        track = Track(uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        files = finished_run(swept, tmp_path, track)
        begun = time.monotonic()
        with pytest.raises(TrackingError, match=r"gave no answer for 0.5 s"):
            track_run(swept, tmp_path, track, **files)
        assert time.monotonic() - begun < 20
    assert read_pending(tmp_path) is not None


def test_a_slow_server_gets_the_rest_later(
    server: Server, swept: RunResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    track = Track(uri=server.url, max_seconds=1000)
    files = finished_run(swept, tmp_path, track)
    clock = iter([0.0, 1.0, 2.0, *[2000.0] * 100])
    with monkeypatch.context() as patch, pytest.raises(TrackingError, match="1000 s are over"):
        patch.setattr("pipelines.tracking.time", SimpleNamespace(monotonic=lambda: next(clock)))
        track_run(swept, tmp_path, track, **files)
    client = client_of(server)
    before = {run.info.run_id for run in runs_of(client, swept.name)["model"]}
    assert len(before) == 2  # of three
    sync_run(tmp_path, server.url)
    runs = runs_of(client, swept.name)
    assert {kind: len(found) for kind, found in runs.items()} == {
        "run": 1,
        "model": 3,
        "benchmark": 6,
    }
    assert before < {run.info.run_id for run in runs["model"]}  # it went on where it stood
    assert runs["run"][0].info.status == "FINISHED"


def test_a_merge_is_registered_with_its_lineage(server: Server, swept: RunResults, tmp_path: Path):
    name = f"merged-{swept.name}"
    track = Track(uri=server.url, register_as=name, upload_weights=True)
    files = finished_run(swept, tmp_path, track)
    files["checkpoints"] = {"TIES": files["checkpoints"]["TIES"]}
    for _ in range(2):  # once more changes nothing
        track_run(swept, tmp_path, track, **files, pushed={"TIES": "s3://models/ties"})
    client = client_of(server)
    (version,) = client.search_model_versions(f"name = '{name}'")
    run = next(r for r in runs_of(client, swept.name)["model"] if r.info.run_name == "TIES")
    assert version.run_id == run.info.run_id
    assert version.tags["nan_merge.fingerprint.base"] == "f0"
    assert version.tags["nan_merge.merge_key"] == "a1b2"
    assert version.tags["nan_merge.pushed_to"] == "s3://models/ties"
    sent = {file.path for file in client.list_artifacts(version.run_id, "checkpoint")}
    assert sent == {
        f"checkpoint/{each}" for each in ("config.json", "merge_manifest.json", "model.safetensors")
    }


def test_what_passed_the_gate_gets_an_alias(server: Server, swept: RunResults, tmp_path: Path):
    track = Track(uri=server.url)
    files = finished_run(swept, tmp_path, track)
    track_run(swept, tmp_path, track, **files)
    verdict = {"margin": "0.01", "baseline": "TA", "margin/wemath: score (strict)": "2"}
    assert mark_passed(tmp_path, "TIES", config=track, verdict=verdict) == f"{swept.name} version 1"
    client = client_of(server)
    version = client.get_model_version_by_alias(swept.name, "passed")
    assert version.tags["nan_merge.merge"] == "TIES"
    assert version.tags["nan_merge.gate.margin"] == "0.01"
    # MLflow refuses some of the signs that names of benchmarks have.
    kept = safe_key("wemath: score (strict)")
    assert version.tags[f"nan_merge.gate.margin/{kept}"] == "2"
    sent = {file.path for file in client.list_artifacts(version.run_id, "checkpoint")}
    assert "checkpoint/model.safetensors" not in sent  # unless it is asked for
    mark_passed(tmp_path, "TA", config=track)
    assert client.get_model_version_by_alias(swept.name, "passed").tags["nan_merge.merge"] == "TA"


def test_a_mark_waits_while_the_server_is_down(server: Server, swept: RunResults, tmp_path: Path):
    gone = Track(uri=f"http://127.0.0.1:{free_port()}")
    files = finished_run(swept, tmp_path, gone)
    with pytest.raises(TrackingError):
        track_run(swept, tmp_path, gone, **files)
    with pytest.raises(TrackingError):
        mark_passed(tmp_path, "TIES", verdict={"margin": "0.01"})  # the run file says where
    sync_run(tmp_path, server.url)
    version = client_of(server).get_model_version_by_alias(swept.name, "passed")
    assert version.tags["nan_merge.gate.margin"] == "0.01"
    assert not (tmp_path / PENDING_NAME).exists()


def test_what_cannot_be_marked_is_said(swept: RunResults, tmp_path: Path):
    finished_run(swept, tmp_path, Track(mlflow=False))
    with pytest.raises(ConfigError, match="not recorded in MLflow"):
        mark_passed(tmp_path, "TIES")
    with pytest.raises(DataError, match="no merge that is called 'base'"):
        mark_passed(tmp_path, "base", config=Track())
    with pytest.raises(DataError, match="cannot be read"):
        mark_passed(tmp_path / "nowhere", "TIES")


def test_the_record_of_a_swept_merge_is_found_by_its_whole_name(tmp_path: Path):
    names = ("TA + NAN (τ)", 'TA, "fixed"', "TA")
    for number, name in enumerate(names):
        folder = tmp_path / "points" / str(number)
        folder.mkdir(parents=True)
        (folder / "point.json").write_text(json.dumps({"name": name}))
    (tmp_path / "points" / "damaged").mkdir()
    (tmp_path / "points" / "damaged" / "point.json").write_text("{")
    for number, name in enumerate(names):
        assert find_record(tmp_path, name) == tmp_path / "points" / str(number)
    assert find_record(tmp_path, "fixed") is None


def test_two_folders_are_sent_although_one_fails(server: Server, swept: RunResults, tmp_path: Path):
    folders = [tmp_path / "damaged", tmp_path / "good"]
    track = Track(uri=f"http://127.0.0.1:{free_port()}")
    for folder in folders:
        folder.mkdir()
        files = finished_run(swept, folder, track)
        with pytest.raises(TrackingError):
            track_run(swept, folder, track, **files)
    (folders[0] / "results.json").write_text("{")
    with pytest.raises(TrackingError, match="damaged holds no results that can be read"):
        sync_command(folders, server.url, Console(file=StringIO()))
    assert read_pending(folders[1]) is None
    assert len(runs_of(client_of(server), swept.name)["run"]) == 1


def test_two_at_once_do_not_disturb_the_server(server: Server, swept: RunResults, tmp_path: Path):
    """Runs of different content in one experiment, as two drivers would record them."""
    track = Track(uri=server.url, experiment=swept.name)
    problems: list[Exception] = []

    def record(seed: int) -> None:
        results, folder = replace(swept, seed=seed), tmp_path / str(seed)
        folder.mkdir()
        try:
            track_run(results, folder, track, **finished_run(results, folder, track))
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=record, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert len(runs_of(client_of(server), swept.name)["run"]) == 2


def test_addresses_without_their_passwords():
    assert usable_uri("http://***@host:5000") == "http://host:5000"
    assert usable_uri("sqlite:///a.db") == "sqlite:///a.db"
    assert usable_uri(None) is None
    with pytest.raises(ConfigError, match="--uri"):
        usable_uri("postgresql://***@db/runs")
