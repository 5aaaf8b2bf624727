"""Find a model: a folder here, or a snapshot of a hub id.

Of a hub id the safetensors files are fetched, and pickled ones (``*.bin``) only where there are
no others. Within `headers_only` weights are not fetched but their headers, by range requests.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nan_merge.errors import CheckpointError
from nan_merge.object_store import is_url, stage

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?$")
BESIDE_WEIGHTS = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
SAFETENSORS, PICKLED = "*.safetensors", "*.bin"
# Other formats and originals lie in subfolders; the others are no weights.
IGNORED = ["*/*", "training_args.bin", "optimizer*.bin", "scheduler*.bin"]
_header_folder: ContextVar[Path | None] = ContextVar("header_folder", default=None)


def resolve_folder(path: str, *, weights: bool = True) -> Path:
    """The local path of a model, downloaded to the hub's cache if need be.

    Args:
        path: Folder, file, URL or hub id.
        weights: Whether weights are wanted; else only what lies beside them is downloaded.

    Raises:
        CheckpointError: If it is neither here nor on the hub, or the hub cannot be reached.
    """
    if is_url(path):
        return stage(path, weights=weights)
    try:
        local = Path(path).expanduser()
        if local.exists():
            return local
    except OSError as error:  # a name that no file can have
        raise CheckpointError(f"No checkpoint at {path[:80]}: {error.strerror}.") from error
    except RuntimeError as error:  # what Python raises for a user who is not there
        raise CheckpointError(
            f"No checkpoint at {path[:80]}: there is no such user. Give the folder's whole path."
        ) from error
    if not HUB_ID.match(path) or path.startswith("."):
        content = "*.safetensors files" if weights else "config.json"
        raise CheckpointError(
            f"No checkpoint at {path} (looked for {local.absolute()}). "
            f"Give a folder with {content}, or a hub id such as org/model."
        )
    with _explain_hub_errors(path):
        if not weights:
            return _snapshot(*_split(path), [])
        headers = _header_folder.get()
        return _download(path) if headers is None else _fetch_headers(path, headers)


def is_own_file(path: Path) -> bool:
    """Whether a file is its folder's own: no link elsewhere, but for those of the hub's cache."""
    target, folder = path.resolve(), path.parent.resolve()
    in_hub_cache = folder.parent.name == "snapshots" and target.parent == (
        folder.parent.parent / "blobs"
    )
    return path.is_file() and (target.parent == folder or in_hub_cache)


@contextmanager
def headers_only() -> Generator[Path]:
    """Within, a hub id is resolved to a folder whose weights are all zero under their own headers.

    For planning, which reads nothing else: configs and tokenizers are fetched, weights are files
    of the right size without content. Weights that are in the hub's cache are taken from there;
    pickled ones have no header to read alone, and are fetched. The folders lie in the one that is
    given, and vanish with it at the end.
    """
    with TemporaryDirectory(prefix="nan-merge-headers-") as folder:
        token = _header_folder.set(Path(folder))
        try:
            yield Path(folder)
        finally:
            _header_folder.reset(token)


def _split(hub_id: str) -> tuple[str, str | None]:
    repository, _, revision = hub_id.partition("@")
    return repository, revision or None


def _snapshot(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    allowed = [*BESIDE_WEIGHTS, *patterns]
    return Path(
        snapshot_download(
            repository, revision=revision, allow_patterns=allowed, ignore_patterns=IGNORED
        )
    )


def _download(hub_id: str) -> Path:
    repository, revision = _split(hub_id)
    folder = _snapshot(repository, revision, [SAFETENSORS])
    has_safetensors = any(folder.glob(SAFETENSORS))
    return folder if has_safetensors else _snapshot(repository, revision, [PICKLED])


def _fetch_headers(hub_id: str, parent: Path) -> Path:
    from huggingface_hub import HfApi

    repository, revision = _split(hub_id)
    api = HfApi()
    try:
        info = api.model_info(repository, revision=revision)
    except Exception:  # of the network or the hub: the cache may do, or else it says what is wrong
        return _download(hub_id)
    names = [file.rfilename for file in info.siblings or ()]
    weights = [name for name in names if "/" not in name and name.endswith(".safetensors")]
    if not weights:
        return _download(hub_id)
    snapshot = _snapshot(repository, info.sha, [])
    if all((snapshot / name).is_file() for name in weights):
        return snapshot
    folder = parent / repository.replace("/", "--") / str(info.sha)
    if not folder.is_dir():
        folder.mkdir(parents=True)
        for file in snapshot.iterdir() if snapshot.is_dir() else ():  # a model of weights alone
            if file.suffix != ".safetensors" and file.is_file():
                shutil.copyfile(file, folder / file.name)
        for name in weights:
            found = api.parse_safetensors_file_metadata(repository, name, revision=info.sha)
            try:
                _write_stand_in(folder / name, found.tensors)
            except (TypeError, ValueError, LookupError, OverflowError, OSError) as error:
                raise CheckpointError(
                    f"{hub_id}: the header of {name} describes no file that could be made here "
                    f"({error}). Download it with `hf download` and give its folder."
                ) from error
    return folder


def _write_stand_in(path: Path, tensors: Any) -> None:
    """A file with these tensors and nothing in them, which takes no room on the disk."""
    header = {
        name: {"dtype": each.dtype, "shape": each.shape, "data_offsets": each.data_offsets}
        for name, each in tensors.items()
    }
    text = json.dumps(header).encode()
    data_bytes = max((each.data_offsets[1] for each in tensors.values()), default=0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + data_bytes)


@contextmanager
def _explain_hub_errors(hub_id: str) -> Generator[None]:
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        SafetensorsParsingError,
    )

    # The errors of the HTTP library, which is another one in each generation of the client.
    http_errors: Any = HfHubHTTPError.__bases__
    unreachable: tuple[type[Exception], ...] = (
        *http_errors,
        LocalEntryNotFoundError,
        OSError,
        HFValidationError,
    )
    try:
        yield
    except SafetensorsParsingError as error:
        raise CheckpointError(
            f"{hub_id} is damaged on the hub: {error} Choose another revision, or ask its owner."
        ) from error
    except unreachable as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403, 404):
            raise CheckpointError(
                f"{hub_id} is neither a folder here nor a model that the hub shows you "
                f"(HTTP {error.response.status_code}). Check the name; for a gated model run "
                "`hf auth login` first."
            ) from error
        raise CheckpointError(
            f"{hub_id} is no folder here, and the hub cannot be reached to download it. Check the "
            f"path; or, where there is a network, run `hf download {_split(hub_id)[0]} --local-dir "
            "DIR` and give DIR instead."
        ) from error
