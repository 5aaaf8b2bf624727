"""Results in object stores, through fsspec: what is there, and how it is sent, the manifest last.

A store has neither renaming nor locks, so the manifest alone makes a folder a result: a reader that
waits for it sees everything or nothing. What was sent is noted in a file beside the local folder:
an upload that broke off continues by it, and whatever it does not name is somebody else's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

from nan_merge.errors import CheckpointError, OutputError
from nan_merge.manifest import MANIFEST_NAME
from nan_merge.object_store import (
    STREAMS,
    default_cache,
    folder_name,
    open_url,
    reason_of,
    remote_file,
    short_digest,
    with_retries,
)
from nan_merge.ownership import OwnedElsewhere, holding
from nan_merge.publish import explain_write_errors, write_text_atomically

MAX_NAMED = 3
# How much was sent, in bytes, and of how much.
OnProgress = Callable[[int, int], None]
# Name of a file -> its local size and time, and what the store then said about it; both absent from
# the moment before it is sent.
_Sent = dict[str, dict[str, Any]]


def local_copy(url: str, staging: Path | None = None) -> Path:
    """The folder in which a result is made before it is sent, and from which it is then gone.

    Args:
        url: The result's place in a store.
        staging: A folder for such folders; by default ``outputs`` beside the cache of inputs.
    """
    return (staging or default_cache().parent / "outputs") / folder_name(url)


@contextmanager
def sole_sender(folder: Path, url: str) -> Generator[None]:
    """Keep others on this storage from making and sending the same result.

    Raises:
        OutputError: If somebody is at it.
    """
    with explain_write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with holding(folder.parent / f".{folder.name}.sending"):
                yield
        except OwnedElsewhere as error:
            raise OutputError(
                f"Another process is merging to {url} at this moment ({error}). Wait for it, or "
                "choose another place."
            ) from error


def find_result(folder: Path, url: str) -> dict[str, Any] | None:
    """The manifest of a result that is in a store; None where one can be put.

    Args:
        folder: The local copy, beside which is noted what was sent.
        url: The result's place.

    Raises:
        OutputError: If there is something else, a result has lost files, or the store cannot be
            read.
    """
    files, path = _open(url)
    with _explained(url):
        there = _sizes(files, path)
        if MANIFEST_NAME not in there:
            _refuse_foreign(url, there.keys() - _read_sent(folder, url).keys())
            return None
        text = with_retries(lambda: files.cat_file(f"{path}/{MANIFEST_NAME}"))
    try:
        manifest = json.loads(text)
        promised = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OutputError(
            f"{url}: {MANIFEST_NAME} is damaged. Remove that folder, or choose another place."
        ) from error
    if lost := [name for name, size in promised.items() if there.get(name) != size]:
        raise OutputError(
            f"{url} holds a merge that has lost {_list(lost)}. Remove that folder and merge again, "
            "or choose another place."
        )
    return manifest


def publish_to(
    folder: Path, url: str, last: str = MANIFEST_NAME, on_progress: OnProgress | None = None
) -> None:
    """Copy a finished folder to an object store; its manifest goes last and so commits it.

    A file that an earlier attempt sent, and that neither side has changed since, is not sent again.

    Args:
        folder: What to copy; hidden files and folders stay.
        url: The folder's place in the store, which must hold nothing else.
        last: The file that is sent last.
        on_progress: Called whenever a file has arrived; from several threads, one at a time.

    Raises:
        OutputError: If there is something already, or the store refuses to be written.
    """
    names = _names_to_send(folder, last)
    files, path = _open(url)
    with _explained(url):
        sent, there = _read_sent(folder, url), _sizes(files, path)
        if last in there:
            raise OutputError(f"{url} holds a finished result already. Choose another place.")
        _refuse_foreign(url, there.keys() - sent.keys())
        for name in there.keys() - set(names):  # an interrupted upload of another merge's
            with_retries(lambda name=name: files.rm_file(f"{path}/{name}"))
        send = _sender(files, path, folder, sent, _note_in(folder, url), names, on_progress)
        with ThreadPoolExecutor(STREAMS) as pool:
            list(pool.map(send, names[:-1]))
        if last in _sizes(files, path):
            raise OutputError(f"{url}: somebody else has published a result there meanwhile.")
        send(last)
    forget_sent(folder, url)


def forget_sent(folder: Path, url: str) -> None:
    """Remove the note of what was sent."""
    _note_of(folder, url).unlink(missing_ok=True)


def _sender(
    files: Any,
    path: str,
    folder: Path,
    sent: _Sent,
    note: Callable[[_Sent], None],
    names: Sequence[str],
    on_progress: OnProgress | None,
) -> Callable[[str], None]:
    """A function that sends one file, for several threads."""
    noting, done = Lock(), 0
    total = sum((folder / name).stat().st_size for name in names)

    def keep(name: str, entry: dict[str, Any], num_bytes: int = 0) -> None:
        nonlocal done
        with noting:
            sent[name] = entry
            note(sent)
            done += num_bytes
            if num_bytes and on_progress is not None:
                on_progress(done, total)

    def send(name: str) -> None:
        local, target = folder / name, f"{path}/{name}"
        size = local.stat().st_size
        mine = {"size": size, "mtime_ns": local.stat().st_mtime_ns}
        entry = sent.get(name, {})
        if entry.get("local") != mine or not _is_there(files, target, entry):
            keep(name, {})  # from now on, whatever is there is ours
            files.makedirs(target.rpartition("/")[0], exist_ok=True)
            with_retries(lambda: files.put_file(str(local), target))
            remote = with_retries(lambda: remote_file(files, target))
            if remote.size != size:
                raise OutputError(f"{target} arrived with {remote.size:,} of {size:,} bytes.")
            entry = {"local": mine, "remote": asdict(remote)}
        keep(name, entry, size)

    return send


def _is_there(files: Any, target: str, entry: dict[str, Any]) -> bool:
    """Whether an object is the one that was sent; where a store tells no version, it may not be."""
    try:
        found = with_retries(lambda: remote_file(files, target))
    except FileNotFoundError:
        return False
    return bool(found.version) and asdict(found) == entry.get("remote")


def _names_to_send(folder: Path, last: str) -> list[str]:
    paths = [item.relative_to(folder) for item in sorted(folder.rglob("*")) if item.is_file()]
    names = [p.as_posix() for p in paths if not any(part.startswith(".") for part in p.parts)]
    if last not in names:
        raise OutputError(f"{folder} has no {last}: it is no finished result to publish.")
    return sorted(names, key=lambda name: name == last)


def _sizes(files: Any, path: str) -> dict[str, int]:
    """Name of everything below a folder of a store -> its bytes."""
    files.invalidate_cache()
    try:
        found = with_retries(lambda: files.find(path, detail=True))
    except FileNotFoundError:
        return {}
    return {
        name.removeprefix(path).lstrip("/") or path: int(info.get("size") or 0)
        for name, info in found.items()
    }


def _refuse_foreign(url: str, names: set[str]) -> None:
    if names:
        raise OutputError(
            f"{url} holds {_list(sorted(names))}, which is neither a finished merge nor of an "
            "upload from here that broke off. Remove it, or choose another place."
        )


def _list(names: Sequence[str]) -> str:
    rest = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + rest


def _note_of(folder: Path, url: str) -> Path:
    return folder.parent / f".{folder.name}.{short_digest(url.rstrip('/'))}.sent"


def _note_in(folder: Path, url: str) -> Callable[[_Sent], None]:
    path = _note_of(folder, url)
    return lambda sent: write_text_atomically(path, json.dumps(sent, indent=1))


def _read_sent(folder: Path, url: str) -> _Sent:
    try:
        found = json.loads(_note_of(folder, url).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}  # nothing was sent yet


def _open(url: str) -> tuple[Any, str]:
    try:
        files, path = open_url(url)
    except CheckpointError as error:  # it says what is wrong with the URL
        raise OutputError(str(error)) from error
    return files, path.rstrip("/")


@contextmanager
def _explained(url: str) -> Generator[None]:
    """Turn whatever a store raises into one message."""
    try:
        yield
    except OutputError:
        raise
    except Exception as error:  # of as many kinds as there are stores
        raise OutputError(
            f"Cannot publish at {url}: {reason_of(error)}. Nothing is published there until the "
            "manifest, which goes last. Check the URL, the network and the credentials; what was "
            "merged and sent is kept, and the same command continues."
        ) from error
