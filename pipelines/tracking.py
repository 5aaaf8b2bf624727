"""Record a run in MLflow: connect, record what is not there yet, explain what fails.

A run is known by a digest of what it found. Recording it again adds nothing; a recording that was
interrupted goes on where it stood. What cannot be recorded waits in the run folder
(`pipelines.outbox`) for `nan-merge track sync`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nan_merge.errors import MissingExtraError, NanMergeError
from pipelines.masking import hide_passwords
from pipelines.outbox import Pending, forget_pending, hold_pending
from pipelines.records import run_key
from pipelines.results import RunResults

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from pipelines.config import Track

# MLflow would send usage data, and retry an unreachable server for minutes.
# It would also print the server's address, which may hold a password, for every model.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
ENVIRONMENT_DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
HEALTH_SECONDS = 10.0
"""How long a server may take to say that it is there."""


class TrackingError(NanMergeError):
    """The run could not be recorded; its results are on disk all the same."""


def track_run(
    results: RunResults,
    folder: Path,
    config: Track,
    *,
    manifests: dict[str, Path],
    predictions: dict[str, Path],
    checkpoints: dict[str, Path] | None = None,
    pushed: dict[str, str] | None = None,
    on_model: Callable[[str], None] = lambda model: None,
) -> str:
    """Record a run, unless it is recorded already.

    Args:
        results: What the run found.
        folder: The run folder; its results, report and, by default, the MLflow store.
        config: Where to record.
        manifests: Model name -> merge manifest or recipe.
        predictions: Model name -> file or folder of predictions.
        checkpoints: Merged model's name -> its folder, for those that are registered; see
            `pipelines.registry`.
        pushed: Merged model's name -> where its checkpoint was copied to.
        on_model: Called with every model that is recorded.

    Returns:
        The tracking URI, for ``mlflow ui --backend-store-uri``, as it may be shown.

    Raises:
        TrackingError: If MLflow fails, whatever the reason, or takes longer than
            `config.max_seconds`. The records then wait in the run folder.
    """
    from pipelines.tracking_record import Files, record_run

    uri = config.uri or default_tracking_uri(folder)
    files = Files(manifests, predictions, checkpoints or {}, pushed or {})
    hold_pending(folder, Pending.of(folder, config, files))
    until = time.monotonic() + config.max_seconds if config.max_seconds else None

    def check(model: str) -> None:
        on_model(model)
        if until is not None and time.monotonic() > until:
            raise TrackingError(f"it is slow, and {config.max_seconds:g} s are over")

    with explain_failures(uri, folder):
        client = connect(uri)
        experiment = _experiment(client, config.experiment or results.name, uri)
        record_run(client, experiment, results, folder, files, config, check)
    forget_pending(folder)
    return hide_passwords(uri)


@contextmanager
def explain_failures(uri: str, folder: Path) -> Iterator[None]:
    """Turn whatever MLflow raises into one message."""
    try:
        yield
    except MissingExtraError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        message = f"MLflow at {uri} could not record the run: {reason}. The results are in "
        message += f"{folder} all the same, and what is not recorded waits there; run the same "
        message += f"command again to retry, or `nan-merge track sync {folder}`."
        # The address may hold a password, and MLflow repeats the address.
        raise TrackingError(hide_passwords(message)) from error


def comparison_path(results: RunResults, folder: Path, config: Track) -> str:
    """What to append to the address of ``mlflow ui`` to see a recorded run's models compared.

    Raises:
        TrackingError: If MLflow fails, whatever the reason.
    """
    uri = config.uri or default_tracking_uri(folder)
    with explain_failures(uri, folder):
        client = connect(uri)
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


def connect(uri: str) -> MlflowClient:
    """A client that sends no usage data and does not tell about its database migrations.

    Raises:
        MissingExtraError: If MLflow is not installed.
        TrackingError: If a server gives no answer.
    """
    os.environ.update(ENVIRONMENT)
    for name, value in ENVIRONMENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise MissingExtraError("tracking needs mlflow: pip install 'nan-merge[track]'") from error
    if uri.startswith(("http://", "https://")):
        _refuse_silent_server(uri)
    # The registry would otherwise be looked for at the process's default URI.
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _refuse_silent_server(uri: str) -> None:
    """One short question first: MLflow's own would wait and ask again for minutes."""
    import requests

    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=HEALTH_SECONDS, stream=True).close()
    except requests.exceptions.SSLError:
        return  # MLflow has settings of its own for certificates; let it speak
    except requests.exceptions.Timeout as error:
        raise TrackingError(f"it gave no answer for {HEALTH_SECONDS:g} s") from error


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
    try:
        return client.create_experiment(name, artifact_location=location, tags=tags)
    except Exception:
        found = client.get_experiment_by_name(name)  # another run may have made it meanwhile
        if found is None:
            raise
        return found.experiment_id
