"""What a checkpoint holds, as one number: a hash of every tensor's name, type, shape and bytes.

It does not depend on how the tensors lie in files. A merge hashes what it reads anyway, so a
checkpoint is hardly ever read for this alone; what is known is remembered under the path, size,
modification time and inode of its files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import xxhash

from nan_merge.blocks import Chunk, ContentHash, cut
from nan_merge.checkpoint import Checkpoint
from nan_merge.errors import OutputError
from nan_merge.plan import align
from nan_merge.publish import write_text_atomically
from nan_merge.row_mapped import RowMappedTensor
from nan_merge.safetensors_file import TensorInfo
from nan_merge.workers import run_on_threads

ENTRY_KEYS = {"fingerprint", "folder"}
# Tensor's name -> digests of its segments, in order.
SegmentDigests = Mapping[str, Sequence[bytes]]


def cache_folder() -> Path:
    """Where results of reading are remembered: ``$NAN_MERGE_CACHE``, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nan-merge"
    return Path(os.environ.get("NAN_MERGE_CACHE") or default)


def cache_path() -> Path:
    """The file of remembered fingerprints."""
    return cache_folder() / "fingerprints.json"


def fingerprint(checkpoint: Checkpoint, workers: int = 1) -> str:
    """Hash of a checkpoint's content; read only if it is not remembered."""
    known = remembered_fingerprint(checkpoint)
    return known or remember(checkpoint, hash_checkpoint(checkpoint, workers))


def hash_checkpoint(checkpoint: Checkpoint, workers: int = 1) -> dict[str, list[bytes]]:
    """Read every tensor and hash its segments."""
    chunks = cut(align(None, [checkpoint]))
    computed = any(type(info) is not TensorInfo for info in checkpoint.tensors.values())
    digests: dict[str, list[bytes]] = {name: [] for name in checkpoint.tensors}
    hashed = run_on_threads(hash_chunk, chunks, workers, with_torch=computed)
    for chunk, segments in zip(chunks, hashed, strict=True):
        digests[chunk.tensor.name].extend(segments)
    return digests


def hash_chunk(chunk: Chunk) -> tuple[bytes, ...]:
    """Read a chunk of a lone checkpoint and hash its segments; only inside `run_chunks`."""
    content = ContentHash(chunk.tensor.reference.dtype.itemsize)
    for run in chunk.runs():
        (stored,) = run.read_stored()
        content.update(stored)
    return content.digests()


def remembered_fingerprint(checkpoint: Checkpoint) -> str | None:
    """The fingerprint, if its files have not changed since it was computed."""
    entry = _load().get(identity(checkpoint))
    return entry["fingerprint"] if entry else None


def remember(checkpoint: Checkpoint, digests: SegmentDigests) -> str:
    """Keep and return the fingerprint that these digests make."""
    # By the names in the files: which ones a merge knows the tensors by is not their content.
    lines = [
        f"{tensor.name} {tensor.dtype} {tuple(tensor.shape)} {_join(digests[name])}"
        for name, tensor in sorted(checkpoint.tensors.items(), key=lambda item: item[1].name)
    ]
    found = digest_text("\n".join(lines))
    entries = {key: entry for key, entry in _load().items() if Path(entry["folder"]).exists()}
    entries[identity(checkpoint)] = {
        "fingerprint": found,
        "folder": str(checkpoint.folder.resolve()),
    }
    with suppress(OSError, OutputError):  # a cache that cannot be written costs only time
        write_text_atomically(cache_path(), json.dumps(entries, indent=0))
    return found


def _join(segments: Sequence[bytes]) -> str:
    return xxhash.xxh3_128_hexdigest(b"".join(segments))


def identity(checkpoint: Checkpoint) -> str:
    """Digest of which files these are and when they changed; their content is not read."""
    files: list[tuple[str, int, int, int]] = []
    for file in checkpoint.files:
        status = file.stat()
        files.append((str(file.resolve()), status.st_size, status.st_mtime_ns, status.st_ino))
    # Tensors whose rows are taken in another order are another content of the same files.
    maps = [t.map_digest for t in checkpoint.tensors.values() if isinstance(t, RowMappedTensor)]
    return digest_text(json.dumps([files, maps]))


def digest_text(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a small file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _load() -> dict[str, dict[str, str]]:
    try:
        entries = json.loads(cache_path().read_bytes())
        return {key: entry for key, entry in entries.items() if entry.keys() >= ENTRY_KEYS}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # a lost or foreign cache costs only time
