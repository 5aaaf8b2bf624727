from __future__ import annotations

import json
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nan_merge.errors import NanMergeError
from pipelines.config import Track
from pipelines.outbox import PENDING_NAME
from pipelines.records import run_key, safe_key
from pipelines.results import RunResults, write_results
from pipelines.tracking import TrackingError, comparison_path, track_run

# MLflow's own use of SQLAlchemy.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
KINDS = ("run", "model", "benchmark")


# MLflow takes seconds to make an empty store; one test makes its own, the others copy this one.
@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    uri = f"sqlite:///{path}"
    MlflowClient(uri, registry_uri=uri).search_experiments()
    return path


@pytest.fixture
def folder(empty_store, tmp_path) -> Path:
    (tmp_path / "run").mkdir()
    shutil.copy(empty_store, tmp_path / "run" / "mlflow.db")
    return tmp_path / "run"


def record(results: RunResults, folder: Path, config: Track | None = None) -> str:
    """Track a run as the pipeline does, with a manifest and predictions of every model."""
    write_results(results, folder)
    manifests, predictions = {}, {}
    for index, model in enumerate([*results.models(), "an expert of no row"]):
        kept = folder / "models" / str(index)
        (kept / "predictions").mkdir(parents=True, exist_ok=True)
        manifests[model] = kept / "merge_manifest.json"
        manifests[model].write_text("{}")
        predictions[model] = kept / "predictions"
        (predictions[model] / "a.jsonl").write_text("{}\n")
    track = config or Track()
    return track_run(results, folder, track, manifests=manifests, predictions=predictions)


def recorded(uri: str, experiment: str):
    """The client, the parent runs, and the children by name."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri, registry_uri=uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id], max_results=1000)
    of_kind = {
        kind: [run for run in runs if run.data.tags["nan_merge.kind"] == kind] for kind in KINDS
    }
    children = {run.info.run_name: run for run in of_kind["model"]}
    assert sum(map(len, of_kind.values())) == len(runs)
    return client, of_kind["run"], children


def grandchildren(client, child) -> dict:
    """Runs of a model's benchmarks, by name."""
    asked = f"tags.`mlflow.parentRunId` = '{child.info.run_id}'"
    runs = client.search_runs([child.info.experiment_id], asked, max_results=1000)
    return {run.info.run_name: run for run in runs}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(self, address):
        raise ConnectionRefusedError(f"nothing may reach out, but {address} was called")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def test_a_run_has_a_child_per_model_in_the_order_of_the_table(results, tmp_path, capfd):
    folder = tmp_path / "run"
    start = time.monotonic()
    uri = record(results, folder)
    assert time.monotonic() - start < 240, "no waiting for servers; a busy machine takes its time"
    assert capfd.readouterr() == ("", ""), "no chatter about the making of the database"
    assert uri == f"sqlite:///{folder}/mlflow.db"
    client, (parent,), children = recorded(uri, "quickstart")
    assert list(children) == [" ".join(model.split()) for model in results.models()]
    assert parent.info.run_name == "quickstart (seed 0)"
    assert parent.info.status == "FINISHED"
    assert parent.data.params["run/base digest"] == "xxh3:0123456789abcdef"
    assert "| pretrained | 91.8 |" in parent.data.tags["mlflow.note.content"]
    owners = {child.data.tags["mlflow.parentRunId"] for child in children.values()}
    assert owners == {parent.info.run_id}
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"config.yaml", "environment.txt", "results.json", "run.json"} <= files
    assert not (folder / PENDING_NAME).exists()
    assert list((tmp_path / "cwd").iterdir()) == []


def test_a_child_holds_scores_errors_coefficients_and_files(results, folder):
    client, _, children = recorded(record(results, folder), "quickstart")
    child = children["TIES + NAN (task vectors)"]
    metrics, params = child.data.metrics, child.data.params
    average, error = results.average("TIES + NAN (task vectors)")
    assert metrics["top1/average"] == pytest.approx(average)
    assert metrics["top1_se/average"] == pytest.approx(error)
    assert metrics["top1/digits"] == 0.942
    assert metrics["coefficient/mnist"] == pytest.approx(3.5 * metrics["alpha/mnist"])
    assert params["method"] == "ties"
    assert params["coefficients"] == "nan(task_vector) x 3.5"
    assert (params["scale"], params["seed"]) == ("3.5", "0")
    files = [file.path for file in client.list_artifacts(child.info.run_id, "predictions")]
    assert files == ["predictions/a.jsonl"]
    assert "top1/average" not in children["../weird/name: 100%|*_`"].data.metrics


def test_the_comparison_shows_the_models_of_one_run_by_their_average(tiny_seeds, folder):
    for results in tiny_seeds:
        uri = record(results, folder)
    client = recorded(uri, "tiny")[0]
    path = comparison_path(tiny_seeds[1], folder, Track())
    key = run_key(tiny_seeds[1])
    assert path == f"/#/experiments/1/runs?viewStateShareKey={key}"
    experiment = client.get_experiment_by_name("tiny")
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])
    runs = client.search_runs(["1"], view["searchFilter"], order_by=[view["orderByKey"] + " DESC"])
    assert [run.info.run_name for run in runs] == ["TIES", "TA", "base"]
    assert view["selectedColumns"][:2] == ["metrics.`top1/average`", "metrics.`top1/a`"]


def test_recording_again_adds_nothing(tiny, folder):
    uri = record(tiny, folder)
    # Times among the facts differ in a repeated run that found the same.
    again = replace(tiny, facts={"seconds": "12"})
    assert record(again, folder) == uri
    _, parents, children = recorded(uri, "tiny")
    assert (len(parents), len(children)) == (1, 3)


def test_other_results_are_another_run(tiny_seeds, folder):
    for results in tiny_seeds:
        uri = record(results, folder)
    assert len(recorded(uri, "tiny")[1]) == 3


def test_an_interrupted_record_is_replaced(tiny, folder, monkeypatch):
    from mlflow.tracking import MlflowClient

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MlflowClient, "log_text", interrupt)
        record(tiny, folder)
    uri = record(tiny, folder)
    _, (parent,), children = recorded(uri, "tiny")
    assert parent.info.status == "FINISHED"
    assert len(children) == 3


def test_names_that_mlflow_refuses_are_mapped_and_stay_distinct(tiny, folder):
    names = {"a": "../x<y>|%", "b": "../x<z>|%"}
    rows = tuple(replace(row, benchmark=names[row.benchmark]) for row in tiny.rows)
    config = Track(experiment='odd "name" <🐙>')
    uri = record(replace(tiny, rows=rows), folder, config)
    metrics = recorded(uri, 'odd "name" <🐙>')[2]["TA"].data.metrics
    assert metrics[f"top1/{safe_key('../x<y>|%')}"] == 0.6
    assert metrics[f"top1/{safe_key('../x<z>|%')}"] == 0.8


def test_safe_keys_keep_good_names_and_tell_bad_ones_apart():
    assert safe_key("letters-2.b") == "letters-2.b"
    assert safe_key("a/b") != safe_key("a:b")
    assert "/" not in safe_key("a/b")
    assert safe_key("..") not in ("", ".", "..")
    assert len(safe_key("x" * 1000)) < 120


def test_a_failing_mlflow_is_an_error_that_the_user_can_mend(tiny, folder, tmp_path):
    (tmp_path / "file").write_text("")
    config = Track(uri=f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(TrackingError, match="again to retry") as caught:
        record(tiny, folder, config)
    assert isinstance(caught.value, NanMergeError)
    assert (folder / "results.json").exists()


def test_the_key_follows_what_was_found(results, tiny):
    assert run_key(results) == run_key(replace(results, facts={}))
    assert run_key(results) != run_key(replace(results, seed=1))
    assert run_key(results) != run_key(tiny)


def test_a_password_in_the_address_is_not_shown(tiny, folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"//\*\*\*@127") as caught:
        record(tiny, folder, Track(uri="http://me:secret@127.0.0.1:9"))
    assert "secret" not in str(caught.value)
