"""Publish a folder in one step: write it beside its final place, sync it, rename it.

A reader sees either nothing or the whole folder. A process that dies leaves only a hidden
sibling ``.NAME.partial``, which the next attempt takes over or clears.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from uuid import uuid4

from nan_merge.errors import (
    CheckpointError,
    CoefficientError,
    ConfigError,
    IncompatibleError,
    OutputError,
)
from nan_merge.ownership import Holding, OwnedElsewhere, holding

PARTIAL = ".partial"  # ends the names of what is not whole
_UNWRITABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EEXIST,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
)
# What no repetition mends: only other inputs or another recipe, which begin anew.
_HOPELESS = (CheckpointError, CoefficientError, ConfigError, IncompatibleError)


def staging_path(final: Path) -> Path:
    """Where the content of ``final`` is written until it is complete."""
    return final.parent / f".{final.name}{PARTIAL}"


@contextmanager
def publish_folder(
    final: Path, *, keep_partial: bool = False, replace: bool = False
) -> Generator[Path]:
    """Yield a staging folder that becomes ``final`` if the block ends without an error.

    Args:
        final: The folder to publish; must not exist, or be an empty folder.
        keep_partial: Enter the staging folder of an earlier attempt instead of clearing it,
            and leave it in place on failure, so that a later attempt can resume. It goes all the
            same if it holds no finished weights and the failure is the inputs' or the recipe's.
        replace: Put the new folder in the place of an old one, which stays until then.

    Raises:
        OutputError: If ``final`` exists, another process is writing it, or the disk is full or
            not writable.
    """
    refuse_taken(final, replace)
    staging = staging_path(final)
    with explain_write_errors(final):
        staging.parent.mkdir(parents=True, exist_ok=True)
        with _sole_owner(staging, final) as owner:
            staging.mkdir(exist_ok=True)
            if not keep_partial:
                clear_folder(staging)
            try:
                yield staging
                sync_tree(staging)
                owner.check()
                if replace and final.exists():
                    _swap(staging, final)
                else:
                    staging.rename(final)
                sync_path(final.parent)
            except BaseException as error:
                if not keep_partial or (isinstance(error, _HOPELESS) and not _has_weights(staging)):
                    shutil.rmtree(staging, ignore_errors=True)
                raise


def _has_weights(staging: Path) -> bool:
    return any(staging.glob("*.safetensors"))


def refuse_taken(final: Path, replace: bool = False) -> None:
    """Refuse a place that holds something already, unless that may be replaced.

    Raises:
        OutputError: If it is a link, a file, or a folder that is not empty.
    """
    if final.is_symlink():
        raise OutputError(f"{final} is a link. Give the folder itself, or another one.")
    if not replace and final.exists() and not (final.is_dir() and not any(final.iterdir())):
        raise OutputError(f"{final} exists already. Remove it or choose another folder.")


def _swap(staging: Path, final: Path) -> None:
    """Put the new folder in the place of the old one, which is gone only after that."""
    aside = final.parent / f".{final.name}.old"
    shutil.rmtree(aside, ignore_errors=True)
    final.rename(aside)
    staging.rename(final)
    shutil.rmtree(aside)


@contextmanager
def _sole_owner(staging: Path, final: Path) -> Generator[Holding]:
    """Keep others from the staging folder, here and on other machines."""
    # Beside the folder and not in it, which is cleared and renamed.
    owner = staging.with_suffix(".owner")
    try:
        with holding(owner) as held:
            yield held
    except OwnedElsewhere as error:
        raise OutputError(
            f"Another process is writing {final} at this moment ({error}). Wait for it, or choose "
            "another folder."
        ) from error


def clear_folder(folder: Path) -> None:
    """Remove everything inside a folder, but not the folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_text_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``; a reader sees the old content or the new, never a part."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes, *, make_folder: bool = True) -> None:
    """Replace what is at ``path``; a reader sees the old content or the new, never a part.

    Args:
        path: File to write.
        content: What it will hold.
        make_folder: Whether its folder is made if it is missing; if not, nothing is written then.

    Raises:
        OutputError: If the disk is full or not writable.
    """
    with explain_write_errors(path):
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        elif not path.parent.is_dir():
            return
        partial = partial_path(path)
        try:
            partial.write_bytes(content)
            sync_path(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def partial_path(path: Path) -> Path:
    """A hidden name beside ``path`` for its content until that is whole.

    No other attempt has it, in this process or on another machine, where process numbers repeat.
    """
    return path.with_name(f".{path.name}.{uuid4().hex}{PARTIAL}")


def partial_paths(path: Path) -> list[Path]:
    """What attempts at ``path`` that ended, or go on, have written under such names."""
    return list(path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL}"))


@contextmanager
def explain_write_errors(path: Path) -> Generator[None]:
    """Turn a full disk, a quota or a missing permission into an ``OutputError`` with a mend."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(
                f"No space left on the disk while writing {path}. Nothing was published. "
                "Free some space, or write to another disk, and run the same command again."
            ) from error
        if error.errno in _UNWRITABLE:
            raise OutputError(f"Cannot write {path}: {error.strerror}.") from error
        raise


def sync_tree(folder: Path) -> None:
    """Flush every file and folder under ``folder`` to the disk."""
    for path in folder.rglob("*"):
        sync_path(path)
    sync_path(folder)


def sync_path(path: Path) -> None:
    """Flush one file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def start_writeback(descriptor: int, offset: int, num_bytes: int) -> None:
    """Ask the kernel to begin writing a range to the disk, so that the final sync waits less."""
    if sys.platform.startswith("linux"):
        # SYNC_FILE_RANGE_WRITE of sync_file_range(2). Only a hint: a failure changes nothing.
        arguments = (ctypes.c_int(descriptor), ctypes.c_int64(offset), ctypes.c_int64(num_bytes))
        _libc().sync_file_range(*arguments, ctypes.c_uint(2))


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
