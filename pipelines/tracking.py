"""Record a run in MLflow: a parent run, a child per model. The only file that imports mlflow.

A run is known by a digest of what it found. Recording it again adds nothing; what an interrupted
attempt left behind is replaced.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nan_merge.errors import MissingExtraError, NanMergeError
from pipelines.masking import hide_passwords
from pipelines.records import (
    comparison_view,
    description,
    model_metrics,
    model_params,
    model_tags,
    run_key,
    run_metrics,
    run_params,
)
from pipelines.results import RunResults

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from pipelines.config import Track

RUN_KEY = "nan_merge.run_key"
MAX_PARAM_LENGTH = 6000
MAX_BATCH = 100
MAX_VIEW_LENGTH = 5000
# MLflow would send usage data, and retry an unreachable server for minutes.
# It would also print the server's address, which may hold a password, for every model.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
ENVIRONMENT_DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


class TrackingError(NanMergeError):
    """The run could not be recorded; its results are on disk all the same."""


def track_run(
    results: RunResults,
    folder: Path,
    config: Track,
    *,
    manifests: dict[str, Path],
    predictions: dict[str, Path],
) -> str:
    """Record a run, unless it is recorded already.

    Args:
        results: What the run found.
        folder: The run folder; its results, report and, by default, the MLflow store.
        config: Where to record.
        manifests: Model name -> merge manifest or recipe.
        predictions: Model name -> file or folder of predictions.

    Returns:
        The tracking URI, for ``mlflow ui --backend-store-uri``, as it may be shown.

    Raises:
        TrackingError: If MLflow fails, whatever the reason.
    """
    uri = config.uri or default_tracking_uri(folder)
    with _explain_failures(uri, folder):
        client = _quiet_client(uri)
        experiment = _experiment(client, config.experiment or results.name, uri)
        key = run_key(results)
        if not _is_recorded(client, experiment, key):
            files = {"manifests": manifests, "predictions": predictions}
            _record(client, experiment, key, results, folder, files)
    return hide_passwords(uri)


@contextmanager
def _explain_failures(uri: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except MissingExtraError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        message = f"MLflow at {uri} could not record the run: {reason}. The results are in "
        message += f"{folder} all the same; run the same command again to retry."
        # The address may hold a password, and MLflow repeats the address.
        raise TrackingError(hide_passwords(message)) from error


def comparison_path(results: RunResults, folder: Path, config: Track) -> str:
    """What to append to the address of ``mlflow ui`` to see a recorded run's models compared.

    Raises:
        TrackingError: If MLflow fails, whatever the reason.
    """
    uri = config.uri or default_tracking_uri(folder)
    with _explain_failures(uri, folder):
        client = _quiet_client(uri)
        experiment = client.get_experiment_by_name(config.experiment or results.name)
    if experiment is None:
        return "/"
    return f"/#/experiments/{experiment.experiment_id}/runs?viewStateShareKey={run_key(results)}"


def how_to_look(uri: str, page: str, mlflow: str) -> list[str]:
    """What to type or open to see a page of the store at ``uri``, which `track_run` returned.

    Args:
        uri: The tracking URI without passwords.
        page: From `comparison_path`.
        mlflow: How to call MLflow's command.
    """
    if uri.startswith(("http://", "https://")):
        server = uri.replace("***@", "", 1).partition("?")[0].rstrip("/")
        return [f"{server}{page}"]
    return [f"{mlflow} ui --backend-store-uri {uri}", f"then open http://127.0.0.1:5000{page}"]


def default_tracking_uri(folder: Path) -> str:
    """SQLite in the run folder."""
    return f"sqlite:///{(folder.resolve() / 'mlflow.db').as_posix()}"


def _quiet_client(uri: str) -> MlflowClient:
    """A client that sends no usage data and does not tell about its database migrations."""
    os.environ.update(ENVIRONMENT)
    for name, value in ENVIRONMENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise MissingExtraError("tracking needs mlflow: pip install 'nan-merge[track]'") from error
    # The registry would otherwise be looked for at the process's default URI.
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    location = None
    if uri.startswith("sqlite:///"):
        # MLflow's own default is relative to wherever the process happens to stand.
        location = (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()
    # The kind spares the reader a dialog that asks for it.
    tags = {"mlflow.experimentKind": "custom_model_development"}
    return client.create_experiment(name, artifact_location=location, tags=tags)


def _is_recorded(client: MlflowClient, experiment: str, key: str) -> bool:
    """Whether the run is there in full; what an interrupted attempt left is deleted."""
    runs = client.search_runs([experiment], f"tags.`{RUN_KEY}` = '{key}'", max_results=1000)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    complete = {run.info.run_id for run in parents if run.info.status == "FINISHED"}
    for run in runs:
        owner = run.data.tags.get("mlflow.parentRunId", run.info.run_id)
        if owner not in complete:
            client.delete_run(run.info.run_id)
    return bool(complete)


def _record(
    client: MlflowClient,
    experiment: str,
    key: str,
    results: RunResults,
    folder: Path,
    artifacts: dict[str, dict[str, Path]],
) -> None:
    now = int(time.time() * 1000)
    name = f"{results.name} (seed {results.seed})"
    models = results.models()
    with _run(client, experiment, name, now, {RUN_KEY: key}) as parent:
        for index, model in enumerate(models):
            tags = {RUN_KEY: key, "mlflow.parentRunId": parent} | model_tags(results, model)
            # MLflow shows the latest run first; so started, models stand in the table's order.
            with _run(client, experiment, model, now + len(models) - index, tags) as child:
                _log_metrics(client, child, model_metrics(results, model))
                _log_params(client, child, model_params(results, model))
                _log_files(client, child, model, artifacts)
        _log_params(client, parent, run_params(results))
        _log_metrics(client, parent, run_metrics(results))
        client.set_tag(parent, "mlflow.note.content", description(results))
        view = comparison_view(results)
        if len(view) <= MAX_VIEW_LENGTH:
            client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{key}", view)
        client.log_text(parent, results.config_yaml, "config.yaml")
        for file in ("results.json", "run.json", "report.html"):
            if (folder / file).is_file():
                client.log_artifact(parent, str(folder / file))
        for model in {name for files in artifacts.values() for name in files} - set(models):
            _log_files(client, parent, model, artifacts)


@contextmanager
def _run(
    client: MlflowClient, experiment: str, name: str, start: int, tags: dict[str, str]
) -> Iterator[str]:
    """A run that is finished at the end of the block, failed if the block fails."""
    tags = {**tags, "mlflow.source.name": "nan-merge"}
    title = " ".join(name.split())[:250]
    run = client.create_run(experiment, start_time=start, tags=tags, run_name=title)
    try:
        yield run.info.run_id
    except BaseException:
        with suppress(Exception):
            client.set_terminated(run.info.run_id, "FAILED")
        raise
    client.set_terminated(run.info.run_id)


def _log_metrics(client: MlflowClient, run: str, values: dict[str, float]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    for part in _parts(Metric(key, float(value), now, 0) for key, value in values.items()):
        client.log_batch(run, metrics=part)


def _log_params(client: MlflowClient, run: str, values: dict[str, Any]) -> None:
    from mlflow.entities import Param

    known = {key: str(value)[:MAX_PARAM_LENGTH] for key, value in values.items() if value != ""}
    for part in _parts(Param(key, value) for key, value in known.items()):
        client.log_batch(run, params=part)


def _log_files(
    client: MlflowClient, run: str, model: str, artifacts: dict[str, dict[str, Path]]
) -> None:
    for kind, files in artifacts.items():
        path = files.get(model)
        if path is not None and path.is_dir():
            client.log_artifacts(run, str(path), kind)
        elif path is not None:
            client.log_artifact(run, str(path), kind)


def _parts(items: Iterable[Any]) -> Iterator[list[Any]]:
    """MLflow takes a hundred parameters at once."""
    every = list(items)
    for start in range(0, len(every), MAX_BATCH):
        yield every[start : start + MAX_BATCH]
