"""The model registry: merges as versions of a registered model, with their lineage.

A version points to files of its run: manifest, model card, config and tokenizer, and the weights if
asked for; a tag says where the weights lie.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nan_merge.manifest import MANIFEST_NAME
from pipelines.records import lineage, run_key, safe_key
from pipelines.results import RunResults

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

ARTIFACTS = "checkpoint"
WEIGHTS = "*.safetensors"
MAX_TAG_LENGTH = 4000
KEY_TAG, MERGE_TAG = "nan_merge.run_key", "nan_merge.merge"


def register_merge(
    client: MlflowClient,
    name: str,
    results: RunResults,
    merge: str,
    run: str,
    checkpoint: Path,
    *,
    upload_weights: bool = False,
    pushed: str = "",
) -> ModelVersion:
    """Make a merge a version of a registered model, unless it is one already.

    Args:
        client: Connected to the registry.
        name: The registered model; made if it is not there.
        results: The run.
        merge: Row of the table.
        run: Id of the merge's MLflow run.
        checkpoint: Its folder, or what is kept of it: manifest and model card.
        upload_weights: Whether the weights go to the run's files, too.
        pushed: Where the checkpoint was copied to, if it was.

    Returns:
        The version.
    """
    _make_model(client, name)
    if found := find_version(client, name, results, merge):
        return found
    _upload(client, run, checkpoint, upload_weights)
    tags = _lineage_tags(results, merge, checkpoint, pushed)
    about = f"{merge}, a merge of the run {results.name} (seed {results.seed})"
    return client.create_model_version(
        name, f"runs:/{run}/{ARTIFACTS}", run_id=run, tags=tags, description=about
    )


def find_version(
    client: MlflowClient, name: str, results: RunResults, merge: str
) -> ModelVersion | None:
    """The version that a run's merge is, if it is registered."""
    quoted = name.replace("'", "\\'")
    key = run_key(results)
    for version in client.search_model_versions(f"name = '{quoted}'"):
        if version.tags.get(KEY_TAG) == key and version.tags.get(MERGE_TAG) == merge:
            return version
    return None


def _make_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="Merged models, by nan-merge.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _upload(client: MlflowClient, run: str, checkpoint: Path, upload_weights: bool) -> None:
    """Send a checkpoint's files; without its weights, they are small."""
    if upload_weights:
        client.log_artifacts(run, str(checkpoint), ARTIFACTS)
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in checkpoint.iterdir():
            if path.is_file() and not path.match(WEIGHTS):
                shutil.copy(path, folder)
        client.log_artifacts(run, folder, ARTIFACTS)


def _lineage_tags(results: RunResults, merge: str, checkpoint: Path, pushed: str) -> dict[str, Any]:
    """Which run, recipe and inputs a version comes from, and where its weights are."""
    tags = {f"nan_merge.{key}": value for key, value in lineage(checkpoint / MANIFEST_NAME).items()}
    tags |= {KEY_TAG: run_key(results), MERGE_TAG: merge, "nan_merge.run": safe_key(results.name)}
    summary = next((each for each in results.merges if each.model == merge), None)
    if summary is not None and summary.folder:
        tags["nan_merge.checkpoint"] = summary.folder
    if pushed:
        tags["nan_merge.pushed_to"] = pushed
    return {key.replace("/", "."): value[:MAX_TAG_LENGTH] for key, value in tags.items()}
