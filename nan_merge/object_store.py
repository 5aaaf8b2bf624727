"""Checkpoints in object stores, through fsspec: any URL that it knows (s3://, gs://, hf://, ...).

A checkpoint is copied into a local cache before it is used, file by file: the engine reads each
block several times, which costs less from a disk than over a network. The copy of a file appears
whole or not at all, is continued where it broke off, and is made anew when the remote file changes.
To plan a merge, headers are enough: see `headers_only`.
"""

from __future__ import annotations

import fcntl
import fnmatch
import glob
import json
import os
import re
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import xxhash

from nan_merge.errors import CheckpointError, MissingExtraError
from nan_merge.publish import explain_write_errors, sync_path, write_text_atomically

URL = re.compile(r"^[a-z][a-z0-9+.-]*(::[a-z][a-z0-9+.-]*)*://.")
CACHE_VARIABLE = "NAN_MERGE_STORE_CACHE"
PIECE_BYTES = 64 << 20
STREAMS = 8  # files at once: one stream of a store is far slower than the store
ATTEMPTS = 3  # of one piece, for errors that may pass
NEVER_RETRIED = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
MAX_HEADER_BYTES = 8 + 100_000_000
WANTED = (
    *("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"),
    *("*.bin", "*.pt", "*.pth"),
)
RECORD = ".nan-merge-source.json"  # in a staged folder: what each file was copied from
PARTS, HEADERS = ".partial", "-headers"
BESIDE = "-beside"  # the same for copies without weights
# What stores call the version of an object's content, the surest first.
_VERSIONS = (
    *("ETag", "etag", "generation", "md5Hash", "version_id"),
    *("mtime", "LastModified", "last_modified", "created"),
)
_headers_only: ContextVar[bool] = ContextVar("_headers_only", default=False)


@dataclass(frozen=True)
class RemoteFile:
    """One object.

    Attributes:
        path: Its path in its file system, without the scheme.
        size: Bytes.
        version: Whatever the store says that changes with the content; "" if it says nothing.
    """

    path: str
    size: int
    version: str

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rstrip("/").rpartition("/")[2]


def is_url(path: str) -> bool:
    """Whether a model is named by URL and not by folder or hub id."""
    return URL.match(path) is not None


def open_url(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        CheckpointError: If no file system is known for the URL.
        MissingExtraError: If fsspec, or its library for this kind of URL, is not installed.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise MissingExtraError(
            f"{url} is in an object store, which needs fsspec: pip install 'nan-merge[objects]'"
        ) from error
    try:
        return url_to_fs(url)
    except ImportError as error:
        raise MissingExtraError(f"{url} needs another library: {error}.") from error
    except ValueError as error:
        raise CheckpointError(f"{url} is no URL of an object store: {error}.") from error


def read_range(url: str, start: int, size: int) -> bytes:
    """Bytes ``start`` to ``start + size`` of an object, or fewer where it ends.

    Raises:
        CheckpointError: If it cannot be read.
    """
    files, path = open_url(url)
    return _ask(url, lambda: files.cat_file(path, start=start, end=start + size))


def stage(url: str, cache: Path | None = None, *, weights: bool = True) -> Path:
    """Copy a remote checkpoint to a local folder, unless it is there already.

    Args:
        url: A folder of weights and configuration, or one file of weights.
        cache: Where copies are kept; by default the folder that NAN_MERGE_STORE_CACHE names, or
            ``~/.cache/nan-merge/stores``. On a cluster it must be on storage that all nodes
            reach, since workers open the copies by path.
        weights: Whether weights are wanted; else what lies beside them is copied, to a folder of
            its own.

    Returns:
        The folder, or the file if the URL names one.

    Raises:
        CheckpointError: If it is missing, cannot be read, or changes while it is copied.
        OutputError: If the cache's disk is full.
    """
    files, path = open_url(url)
    found, is_file = _ask(url, lambda: _list(files, path))
    folder = (cache or default_cache()) / folder_name(url)
    if not weights:
        found, folder = list(filter(_is_text, found)), folder.with_name(folder.name + BESIDE)
    elif all(_is_text(file) for file in found):
        raise CheckpointError(f"{url} holds no weights. Is it the right folder?")
    if weights and _headers_only.get() and _outdated(found, folder):
        folder = folder.with_name(folder.name + HEADERS)
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _alone_in(folder):
            _copy_all(files, found, folder)
    return folder / found[0].name if is_file and found else folder


@contextmanager
def headers_only() -> Generator[None]:
    """Inside, `stage` fetches of safetensors files only the header, enough to plan a merge.

    Their copies have the remote file's size and are empty but for the header; they lie in a
    folder of their own, so that no merge can take them for the model. A model that is copied whole
    already is taken as it is; pickled weights have no header to read alone, and are copied.
    """
    token = _headers_only.set(True)
    try:
        yield
    finally:
        _headers_only.reset(token)


def is_header_copy(path: Path) -> bool:
    """Whether a staged file of weights is a header alone."""
    return path.suffix == ".safetensors" and path.parent.name.endswith(HEADERS)


def default_cache() -> Path:
    """Where copies of remote checkpoints are kept."""
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path("~/.cache/nan-merge/stores").expanduser()


def _list(files: Any, path: str) -> tuple[list[RemoteFile], bool]:
    """Objects that a checkpoint consists of, and whether the path is one of them."""
    is_file = files.info(path)["type"] == "file"
    entries = [{"name": path, "type": "file"}] if is_file else files.ls(path, detail=True)
    wanted = [
        entry["name"]
        for entry in entries
        if entry["type"] == "file"
        and any(fnmatch.fnmatchcase(entry["name"].rpartition("/")[2], kind) for kind in WANTED)
    ]
    return [remote_file(files, name) for name in sorted(wanted)], is_file


def remote_file(files: Any, path: str) -> RemoteFile:
    """What the store itself says about an object now; a listing may say it in other words."""
    files.invalidate_cache()
    info = files.info(path)
    version = next((info[key] for key in _VERSIONS if info.get(key)), "")
    return RemoteFile(path, int(info["size"]), str(version))


def _is_text(file: RemoteFile) -> bool:
    return not file.name.endswith((".safetensors", ".bin", ".pt", ".pth"))


def folder_name(url: str) -> str:
    """A name for people, and a digest against those that would share it."""
    name = re.sub(r"[^\w.]+", "-", url.rstrip("/").rpartition("/")[2]).strip("-.") or "model"
    return f"{name[:80]}-{short_digest(url.rstrip('/'))}"


def short_digest(text: str) -> str:
    """A short name for a long text."""
    return xxhash.xxh3_64_hexdigest(text.encode())


def _read_record(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}  # nothing was copied yet; a damaged record costs a copy


def _is_whole(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


@contextmanager
def _alone_in(folder: Path) -> Generator[None]:
    """Wait until no other process copies to the folder; a process that dies lets go of it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _copy_all(files: Any, found: list[RemoteFile], folder: Path) -> None:
    """Copy what is not there yet, and remove what is there no more."""
    record, only_headers = _read_record(folder), _headers_only.get()
    recording = Lock()

    def copy(file: RemoteFile) -> None:
        only_header = only_headers and file.name.endswith(".safetensors")
        (_copy_header if only_header else _copy)(files, file, folder)
        with recording:
            record[file.name] = asdict(file)
            write_text_atomically(folder / RECORD, json.dumps(record, indent=1))

    with ThreadPoolExecutor(STREAMS) as pool:
        list(pool.map(copy, _outdated(found, folder)))
    _forget_others(folder, record, {file.name for file in found})


def _outdated(found: Sequence[RemoteFile], folder: Path) -> list[RemoteFile]:
    """Objects whose copies are missing, or of another content."""
    record = _read_record(folder)
    return [
        file
        for file in found
        if record.get(file.name) != asdict(file) or not _is_whole(folder / file.name, file)
    ]


def _copy_header(files: Any, file: RemoteFile, folder: Path) -> None:
    """A file of the remote one's size that holds its header and nothing else."""
    prefix = _ask(file.path, lambda: files.cat_file(file.path, start=0, end=min(8, file.size)))
    # A header that claims to be longer than its file is left to the reader of headers to refuse.
    end = min(8 + int.from_bytes(prefix, "little"), file.size, MAX_HEADER_BYTES)
    header = _ask(file.path, lambda: files.cat_file(file.path, start=0, end=end))
    partial = folder / f".{file.name}{PARTS}"
    with partial.open("wb") as output:
        output.write(header)
        output.truncate(file.size)
    partial.replace(folder / file.name)


def _copy(files: Any, file: RemoteFile, folder: Path) -> None:
    """Copy one object in pieces; what an earlier attempt got of the same content is kept."""
    key = short_digest(repr(file))
    partial = folder / f".{file.name}.{key}{PARTS}"
    for other in folder.glob(f".{glob.escape(file.name)}.*{PARTS}"):
        if other != partial:
            other.unlink(missing_ok=True)  # of a content that the store has no more
    with partial.open("ab") as output:
        while (start := output.tell()) < file.size:
            end = min(start + PIECE_BYTES, file.size)
            span = {"start": start, "end": end}
            piece = _ask(file.path, lambda span=span: files.cat_file(file.path, **span))
            if len(piece) != end - start:
                break  # it is shorter than it was
            output.write(piece)
    now = _ask(file.path, lambda: remote_file(files, file.path))
    if partial.stat().st_size != file.size or now != file:
        partial.unlink()
        raise CheckpointError(
            f"{file.path} changed while it was copied. Run the same command again."
        )
    sync_path(partial)
    partial.replace(folder / file.name)


def _forget_others(folder: Path, record: dict[str, dict[str, Any]], names: set[str]) -> None:
    """Remove copies of objects that are gone, which would be taken for parts of the model."""
    for name in record.keys() - names:
        (folder / name).unlink(missing_ok=True)
        del record[name]
        write_text_atomically(folder / RECORD, json.dumps(record, indent=1))


def _ask(what: str, call: Callable[[], Any]) -> Any:
    """Call a store, again if need be; what it raises becomes one message about ``what``."""
    with _explained(what):
        return with_retries(call)


def with_retries(call: Callable[[], Any]) -> Any:
    """Call again after an error that may pass; the last one is raised."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except NEVER_RETRIED:
            raise
        except (OSError, TimeoutError):
            if attempt == ATTEMPTS:
                raise
    raise AssertionError("unreachable")


@contextmanager
def _explained(what: str) -> Generator[None]:
    """Turn whatever a store raises into one message."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(f"There is nothing at {what}. Check the URL.") from error
    except Exception as error:  # of as many kinds as there are stores
        raise CheckpointError(
            f"Cannot read {what}: {reason_of(error)}. Check the URL, the network and the "
            "credentials; what was copied is kept, and the same command continues."
        ) from error


def reason_of(error: Exception) -> str:
    """What a store's error says, short enough to be part of a message."""
    return (" ".join(str(error).split())[:300] or type(error).__name__).rstrip(". ")
