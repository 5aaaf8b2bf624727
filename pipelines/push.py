"""Copy a merged checkpoint to an object store or to a model hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rich.console import Console

from nan_merge.errors import ConfigError, OutputError
from nan_merge.manifest import MANIFEST_NAME, is_whole, read_manifest
from nan_merge.object_output import OnProgress, find_result, publish_to
from nan_merge.object_store import is_url
from pipelines.merge import show_bytes
from pipelines.progress import RunProgress
from pipelines.run_folder import slug

HUB = "hf://"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def push_command(checkpoint: Path, destination: str, console: Console, *, public: bool) -> None:
    """Push a checkpoint and say where it is."""
    with RunProgress(console).stage("send", 1000) as bar:
        place = push(checkpoint, destination, public=public, on_progress=show_bytes(bar))
    console.print(f"{checkpoint} is at {place}.", markup=False, highlight=False, soft_wrap=True)


def push(
    checkpoint: Path,
    destination: str,
    *,
    public: bool = False,
    on_progress: OnProgress | None = None,
) -> str:
    """Copy a merge to where others find it; one that is there already is left as it is.

    Args:
        checkpoint: Folder of a merge.
        destination: URL in an object store, or ``hf://OWNER/NAME``.
        public: Whether a repository of the hub that is made here may be seen by all.
        on_progress: For object stores: called with (bytes sent, bytes in all).

    Returns:
        Where it is.

    Raises:
        OutputError: If there is no whole merge, something else is at the destination, or it
            cannot be written.
        ConfigError: If the destination is neither.
    """
    if not (checkpoint / MANIFEST_NAME).is_file() or not is_whole(checkpoint):
        raise OutputError(
            f"{checkpoint} holds no whole merge. Name a folder that `nan-merge merge` wrote."
        )
    if destination.startswith(HUB):
        return _push_to_hub(checkpoint, destination.removeprefix(HUB).strip("/"), public)
    if not is_url(destination):
        raise ConfigError(
            f"{destination} is neither the URL of an object store (s3://bucket/folder) nor a "
            "repository of the hub (hf://owner/name)."
        )
    key = read_manifest(checkpoint / MANIFEST_NAME).get("merge_key")
    there = find_result(checkpoint, destination)
    if there is not None and there.get("merge_key") != key:
        raise OutputError(f"{destination} holds another merge already. Choose another place.")
    if there is None:
        publish_to(checkpoint, destination, on_progress=on_progress)
    return destination


def place_of_merge(destination: str, merge: str) -> str:
    """Where one of a run's merges goes: a folder below a URL, a repository beside others.

    >>> place_of_merge("s3://models/run1/", "TA, lambda=0.3")
    's3://models/run1/ta-lambda-0.3'
    >>> place_of_merge("hf://me/quickstart", "TA, lambda=0.3")
    'hf://me/quickstart-ta-lambda-0.3'
    """
    joint = "-" if destination.startswith(HUB) else "/"
    return destination.rstrip("/") + joint + slug(merge)


def _push_to_hub(checkpoint: Path, repository: str, public: bool) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    if not _REPOSITORY.fullmatch(repository):
        raise ConfigError(
            f"{HUB}{repository} is no repository of the hub, such as hf://owner/name."
        )
    api = HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        commit: Any = api.upload_folder(
            repo_id=repository,
            folder_path=checkpoint,
            commit_message="Upload a merge by nan-merge",
            ignore_patterns=[".*"],
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:500]
        raise OutputError(
            f"Cannot push to {HUB}{repository}: {reason}. Check the name, the network and the "
            "token (`hf auth login`, or HF_TOKEN); the same command tries again."
        ) from error
    return str(commit.repo_url if hasattr(commit, "repo_url") else f"{HUB}{repository}")
