"""Send the records that wait in run folders, and mark merges that passed a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.console import Console

from nan_merge.errors import ConfigError, DataError, NanMergeError
from pipelines.config import RunConfig, Track
from pipelines.masking import hide_passwords
from pipelines.outbox import Pending, forget_pending, hold_pending, read_pending, waiting_folders
from pipelines.records import run_key, safe_key
from pipelines.registry import find_version, register_merge
from pipelines.results import RunResults, read_results
from pipelines.sweep_records import find_record
from pipelines.tracking import (
    TrackingError,
    connect,
    default_tracking_uri,
    explain_failures,
    track_run,
)

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PASSED = "passed"
RUNS = Path("runs")


def sync_command(folders: Sequence[Path], uri: str | None, console: Console) -> None:
    """Send what waits in run folders, and say of each what became of it.

    Args:
        folders: Run folders; those below `runs/` in which something waits, if there are none.
        uri: The server, if it is another than when the run was recorded, or has a password.
        console: Where to print.

    Raises:
        NanMergeError: If something waits still; the other folders are sent all the same.
    """
    wanted = list(folders) or waiting_folders(RUNS)
    if not wanted:
        console.print(f"Nothing waits below {RUNS}/.", highlight=False)
        return
    problems: list[str] = []
    for folder in wanted:
        if not folder.is_dir():
            problems.append(f"There is no folder {folder}. Name run folders, e.g. runs/quickstart.")
            continue
        try:
            sent = sync_run(folder, uri)
        except NanMergeError as error:
            problems.append(str(error))
            continue
        state = f"is recorded at {sent}." if sent else "has nothing that waits."
        console.print(f"{folder} {state}", markup=False, highlight=False, soft_wrap=True)
    if problems:
        raise TrackingError("\n".join(problems))


def sync_run(folder: Path, uri: str | None = None) -> str:
    """Send what waits in a run folder, without a limit of time.

    Returns:
        The tracking URI, as it may be shown; empty if nothing waited.

    Raises:
        TrackingError: If MLflow fails, whatever the reason.
        DataError: If the folder holds no results.
        ConfigError: If a password is needed that is not kept on disk.
    """
    pending = read_pending(folder)
    if pending is None:
        return ""
    config = Track(
        uri=uri or usable_uri(pending.uri),
        experiment=pending.experiment,
        register_as=pending.register_as,
        upload_weights=pending.upload_weights,
        max_seconds=0,
    )
    sent = track_run(
        results_of(folder),
        folder,
        config,
        manifests=pending.paths(folder, "manifests"),
        predictions=pending.paths(folder, "predictions"),
        checkpoints=pending.paths(folder, "checkpoints"),
        pushed=pending.pushed,
    )
    for merge, verdict in pending.marks.items():
        _mark(folder, merge, config, verdict)
        _forget_mark(folder, merge)
    return sent


def mark_passed(
    run: Path, merge: str, *, config: Track | None = None, verdict: Mapping[str, str] | None = None
) -> str:
    """Give the alias ``passed`` to a merge that passed a gate; it is registered if it is not yet.

    Args:
        run: Folder of the merge's run.
        merge: Its row of the table.
        config: The run's section `track`; that of `config.yaml` in its folder if None.
        verdict: What to write beside the version, such as the baseline and the margin.

    Returns:
        The version, e.g. ``quickstart version 2``.

    Raises:
        TrackingError: If MLflow fails; the mark then waits for `nan-merge track sync`.
        DataError: If the folder holds no results, or not of this merge.
        ConfigError: If the run is not recorded at all (`track.mlflow: false`).
    """
    track = config or track_of(run)
    if not track.mlflow:
        raise ConfigError(
            f"{run} is not recorded in MLflow (`track.mlflow: false`), so {merge} cannot be marked "
            "as passed there."
        )
    if merge not in {each.model for each in results_of(run).merges}:
        raise DataError(f"{run} holds no merge that is called {merge!r}.")
    text = {key: str(value) for key, value in (verdict or {}).items()}
    try:
        sync_run(run, track.uri)
        return _mark(run, merge, track, text)
    except TrackingError:
        before = read_pending(run) or Pending(uri=_shown(track), experiment=track.experiment)
        marks = {**before.marks, merge: text}
        hold_pending(run, replace(before, marks=marks, register_as=track.register_as))
        raise


def _mark(folder: Path, merge: str, config: Track, verdict: Mapping[str, str]) -> str:
    results = results_of(folder)
    uri = config.uri or default_tracking_uri(folder)
    name = config.register_as or results.name
    with explain_failures(uri, folder):
        client = connect(uri)
        version = find_version(client, name, results, merge)
        if version is None:
            run = _run_of(client, config.experiment or results.name, results, merge)
            summary = next(each for each in results.merges if each.model == merge)
            checkpoint = _files_of(folder, merge, summary.folder)
            version = register_merge(client, name, results, merge, run, checkpoint)
        for key, value in verdict.items():
            what, slash, of = key.partition("/")  # "margin/BENCHMARK"; MLflow takes few signs
            tag = f"nan_merge.gate.{what}{slash}{safe_key(of) if of else ''}"
            client.set_model_version_tag(name, version.version, tag, value)
        client.set_registered_model_alias(name, PASSED, version.version)
    return f"{name} version {version.version}"


def _files_of(folder: Path, merge: str, checkpoint: str) -> Path:
    """A merge's checkpoint, or what a sweep keeps of one that is gone."""
    if checkpoint and (folder / checkpoint).is_dir():
        return folder / checkpoint
    if (record := find_record(folder, merge)) is not None:
        return record
    raise DataError(f"The checkpoint of {merge} is not in {folder} any more.")


def _run_of(client: MlflowClient, experiment: str, results: RunResults, merge: str) -> str:
    """Id of the MLflow run of one merge."""
    found = client.get_experiment_by_name(experiment)
    asked = f"tags.`nan_merge.run_key` = '{run_key(results)}' and tags.`nan_merge.kind` = 'model'"
    runs = client.search_runs([found.experiment_id], asked, max_results=50_000) if found else []
    for run in runs:
        if run.data.tags.get("nan_merge.model") == merge:
            return run.info.run_id
    raise TrackingError(f"there is no record of {merge} in the experiment {experiment}")


def track_of(run: Path) -> Track:
    """The section `track` that a run was run with; a password in its address is not kept.

    Raises:
        DataError: If the folder holds no run file.
    """
    path = run / "config.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        track = RunConfig.model_validate(content).track
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read ({error}). Run the same command again.") from error
    return track.model_copy(update={"uri": usable_uri(track.uri)})


def usable_uri(uri: str | None) -> str | None:
    """An address whose login was hidden, without it: MLflow then takes it from the environment.

    Raises:
        ConfigError: If a password is needed within the address.
    """
    if uri is None or "***" not in uri:
        return uri
    if uri.startswith(("http://", "https://")) and "=***" not in uri:
        return uri.replace("***@", "")
    raise ConfigError(
        f"The password of {uri} is not kept on disk. Name the whole address with --uri."
    )


def results_of(folder: Path) -> RunResults:
    """What a run found.

    Raises:
        DataError: If there is nothing, or it is damaged.
    """
    try:
        return read_results(folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{folder} holds no results that can be read ({error}). Name the folder of a finished "
            "run, e.g. runs/quickstart."
        ) from error


def _forget_mark(folder: Path, merge: str) -> None:
    pending = read_pending(folder)
    if pending is not None:
        marks = {name: verdict for name, verdict in pending.marks.items() if name != merge}
        hold_pending(folder, replace(pending, marks=marks))
        forget_pending(folder)


def _shown(track: Track) -> str | None:
    return hide_passwords(track.uri) if track.uri else None
