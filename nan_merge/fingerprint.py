"""Content hashes of checkpoint files, computed once per version of a file."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from nan_merge.checkpoint import Checkpoint
from nan_merge.errors import OutputError
from nan_merge.publish import write_text_atomically

CHUNK_BYTES = 8 << 20


def cache_path() -> Path:
    """Where hashes are remembered: ``$NAN_MERGE_CACHE``, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nan-merge"
    return Path(os.environ.get("NAN_MERGE_CACHE") or default) / "fingerprints.json"


def fingerprint(checkpoint: Checkpoint) -> str:
    """Hash of a checkpoint's weights: SHA-256 over the names and SHA-256 of its files.

    The hash of a file is remembered under its path, size, modification time and inode, so a
    checkpoint that has not changed is not read again.
    """
    remembered = _load()
    known = dict(remembered)
    digests = [(file.name, _file_digest(file, known)) for file in checkpoint.files]
    if known != remembered:
        _save(known)
    return digest_text(json.dumps(digests))


def digest_text(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _file_digest(path: Path, known: dict[str, str]) -> str:
    status = path.stat()
    key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"
    if key not in known:
        known[key] = digest_file(path)
    return known[key]


def _load() -> dict[str, str]:
    try:
        return dict(json.loads(cache_path().read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}  # a lost cache costs only time


def _save(known: dict[str, str]) -> None:
    fresh = {key: digest for key, digest in known.items() if _still_valid(key)}
    try:
        write_text_atomically(cache_path(), json.dumps(fresh, indent=0))
    except (OSError, OutputError):
        return  # a cache that cannot be written costs only time


def _still_valid(key: str) -> bool:
    return Path(key.split("|", 1)[0]).exists()
