"""Find a model: a folder here, or a snapshot of a hub id."""

from __future__ import annotations

import re
from pathlib import Path

from nan_merge.errors import CheckpointError
from nan_merge.object_store import is_url, stage

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?$")
WEIGHTS_AND_CONFIG = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]


def resolve_folder(path: str) -> Path:
    """The local path of a model, downloaded to the hub's cache if need be.

    Raises:
        CheckpointError: If it is neither here nor on the hub, or the hub cannot be reached.
    """
    if is_url(path):
        return stage(path)
    local = Path(path).expanduser()
    try:
        if local.exists():
            return local
    except OSError as error:  # a name that no file can have
        raise CheckpointError(f"No checkpoint at {path[:80]}: {error.strerror}.") from error
    if not HUB_ID.match(path) or path.startswith("."):
        raise CheckpointError(
            f"No checkpoint at {path} (looked for {local.absolute()}). "
            "Give a folder with *.safetensors files, or a hub id such as org/model."
        )
    return _download(path)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = hub_id.partition("@")
    try:
        folder = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=WEIGHTS_AND_CONFIG,
            ignore_patterns=["*/*"],  # other formats and originals lie in subfolders
        )
    except (LocalEntryNotFoundError, ConnectionError, OSError, HFValidationError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403, 404):
            raise CheckpointError(
                f"{hub_id} is neither a folder here nor a model that the hub shows you "
                f"(HTTP {error.response.status_code}). Check the name; for a gated model run "
                "`hf auth login` first."
            ) from error
        raise CheckpointError(
            f"{hub_id} is no folder here, and the hub cannot be reached to download it. Check the "
            f"path; or, where there is a network, run `hf download {repository} --local-dir DIR` "
            "and give DIR instead."
        ) from error
    return Path(folder)
