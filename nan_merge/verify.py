"""Check a merged checkpoint against its manifest: files, index, tensors, and every byte of data.

The manifest's hashes (xxh3) find damage: a copy that was cut short, a disk that forgot, a file of
another merge. They are no protection against someone who rewrites the manifest too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nan_merge.blocks import CHUNK_ELEMENTS, cut
from nan_merge.checkpoint import INDEX_NAME, Checkpoint, natural_key
from nan_merge.errors import CheckpointError
from nan_merge.fingerprint import digest_file, hash_chunk
from nan_merge.manifest import MANIFEST_NAME, SIDE_FILES, read_manifest
from nan_merge.pickled import NO_WEIGHTS, PICKLED_SUFFIXES
from nan_merge.plan import align
from nan_merge.safetensors_file import TensorInfo, read_header
from nan_merge.workers import run_on_threads

MAX_LISTED_PROBLEMS = 20
# How much was read, in bytes, and of how much.
OnProgress = Callable[[int, int], None]
# File's name -> size in bytes, and tensor's name -> hashes of its segments, in hexadecimal.
Promised = dict[str, tuple[int, dict[str, list[str]]]]


@dataclass(frozen=True)
class Verified:
    """A checkpoint that is what its manifest says.

    Attributes:
        num_files: Files of weights.
        num_tensors: Tensors in them.
        num_bytes: Bytes of their data, all of which were read.
    """

    num_files: int
    num_tensors: int
    num_bytes: int


def verify_checkpoint(
    folder: Path, workers: int = 1, on_progress: OnProgress | None = None
) -> Verified:
    """Read a merged checkpoint whole and compare it with its ``merge_manifest.json``.

    Compared are the names and sizes of the files of weights, the index, the names of the tensors in
    each file, the hash of every tensor's data, and those of config, tokenizer and like files. (A
    manifest of an older version has none of the last; then their JSON is parsed, and that is all.)

    Args:
        folder: What `merge_checkpoint` wrote.
        workers: Processes that read.
        on_progress: Called as reading goes on.

    Raises:
        CheckpointError: If anything differs; lists every problem with its file and tensor.
    """
    promised = _promised_files(folder)
    problems = [*_file_problems(folder, promised), *_index_problems(folder, promised)]
    problems += _beside_problems(folder)
    found: dict[str, dict[str, TensorInfo]] = {}
    for name, (size, hashes) in promised.items():
        path = folder / name
        if path.is_file() and path.stat().st_size == size:
            try:
                found[name] = read_header(path)
                problems += _tensor_problems(path, hashes, found[name])
            except CheckpointError as error:
                problems.append(str(error))
    problems += _data_problems(folder, promised, found, workers, on_progress)
    if problems:
        raise _differs(folder, problems)
    tensors = [tensor for of_file in found.values() for tensor in of_file.values()]
    return Verified(len(found), len(tensors), sum(tensor.num_bytes for tensor in tensors))


def _differs(folder: Path, problems: list[str]) -> CheckpointError:
    shown = problems[:MAX_LISTED_PROBLEMS]
    if len(problems) > len(shown):
        shown.append(f"... and {len(problems) - len(shown)} more")
    lines = "\n".join(f"  - {line}" for line in shown)
    number = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return CheckpointError(
        f"{folder} is not what its {MANIFEST_NAME} says ({number}):\n{lines}\n"
        "Copy it again from where it is whole, or remove the folder and merge again."
    )


def _promised_files(folder: Path) -> Promised:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder. Give one that `nan-merge merge` wrote.")
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no {MANIFEST_NAME}, so there is nothing to compare it with. Give a "
            "folder that `nan-merge merge` wrote."
        )
    files = read_manifest(path).get("files")
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{path} is damaged: it has no `files`. Merge again.")
    return {name: _promised_file(path, name, entry) for name, entry in files.items()}


def _promised_file(path: Path, name: str, entry: Any) -> tuple[int, dict[str, list[str]]]:
    # A manifest comes from strangers: `../x` or `/x` would read somewhere else.
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise CheckpointError(
            f"{path} is damaged: it names {name!r}, which is no file of this folder. Merge again."
        )
    size = entry.get("bytes") if isinstance(entry, dict) else None
    hashes = entry.get("xxh3") if isinstance(entry, dict) else None
    if not isinstance(size, int) or not isinstance(hashes, dict):
        raise CheckpointError(f"{path} is damaged: it gives {name} no size or hashes. Merge again.")
    for tensor, digests in hashes.items():
        if not isinstance(digests, list) or not all(isinstance(each, str) for each in digests):
            raise CheckpointError(
                f"{path} is damaged: it gives {name}, tensor {tensor}, no hashes. Merge again."
            )
    return size, hashes


def _file_problems(folder: Path, promised: Promised) -> Iterator[str]:
    for name, (size, _) in promised.items():
        path = folder / name
        if not path.is_file():
            yield f"{path} is missing"
        elif path.stat().st_size != size:
            yield f"{path} has {path.stat().st_size:,} bytes, the manifest says {size:,}"
    suffixes = (".safetensors", *PICKLED_SUFFIXES)
    for path in sorted(folder.iterdir()):
        is_weights = path.suffix in suffixes and not path.name.startswith(NO_WEIGHTS)
        if is_weights and path.name not in promised:
            yield f"{path} is no part of this merge; whoever loads the folder may load it too"


def _beside_problems(folder: Path) -> Iterator[str]:
    """Config, tokenizer and like files that are not those that the merge wrote."""
    expected = read_manifest(folder / MANIFEST_NAME).get("beside")
    if not isinstance(expected, dict):  # of an older version
        yield from _json_problems(folder)
        return
    for path in (folder / name for name in SIDE_FILES):
        if not path.is_file():
            if path.name in expected:
                yield f"{path} is missing"
        elif path.name not in expected:
            yield f"{path} is no part of this merge; whoever loads the folder may load it too"
        elif digest_file(path) != expected[path.name]:
            yield f"{path} holds other data than was written"


def _json_problems(folder: Path) -> Iterator[str]:
    for path in (folder / name for name in SIDE_FILES if name.endswith(".json")):
        try:
            json.loads(path.read_bytes() if path.is_file() else b"{}")
        except (OSError, ValueError, RecursionError):
            yield f"{path} is damaged: it is not JSON"


def _index_problems(folder: Path, promised: Promised) -> Iterator[str]:
    path = folder / INDEX_NAME
    if not path.is_file():
        if len(promised) > 1:
            yield f"{path} is missing; without it {len(promised)} files are no checkpoint"
        return
    expected = {tensor: name for name, (_, hashes) in promised.items() for tensor in hashes}
    try:
        found = json.loads(path.read_bytes())["weight_map"]
        different = [
            name for name in {**expected, **found} if expected.get(name) != found.get(name)
        ]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        yield f"{path} is damaged: it has no `weight_map`"
        return
    for name in different:
        where, should = found.get(name, "nowhere"), expected.get(name, "nowhere")
        yield f"{path} places tensor {name} in {where}, the manifest in {should}"


def _tensor_problems(
    path: Path, hashes: dict[str, list[str]], tensors: dict[str, TensorInfo]
) -> Iterator[str]:
    for name in sorted(hashes.keys() - tensors.keys(), key=natural_key):
        yield f"{path}: tensor {name} is missing"
    for name in sorted(tensors.keys() - hashes.keys(), key=natural_key):
        yield f"{path}: tensor {name} is no part of this merge"


def _data_problems(
    folder: Path,
    promised: Promised,
    found: dict[str, dict[str, TensorInfo]],
    workers: int,
    on_progress: OnProgress | None,
) -> Iterator[str]:
    """Tensors whose data has another hash, file by file: a file that cannot be read ends itself."""
    total = sum(tensor.num_bytes for tensors in found.values() for tensor in tensors.values())
    done = 0
    for name, tensors in found.items():
        hashes = promised[name][1]
        known = {tensor: info for tensor, info in tensors.items() if tensor in hashes}
        digests: dict[str, list[str]] = {tensor: [] for tensor in known}
        try:
            for tensor, segments, num_bytes in _hash_tensors(folder / name, known, workers):
                digests[tensor] += segments
                done += num_bytes
                if on_progress:
                    on_progress(done, total)
        except CheckpointError as error:
            yield str(error)
            continue
        for tensor, info in known.items():
            yield from _hash_problems(info, hashes[tensor], digests[tensor])


def _hash_tensors(
    path: Path, tensors: dict[str, TensorInfo], workers: int
) -> Iterator[tuple[str, list[str], int]]:
    """Tensor's name, hashes of the next segments, bytes read; segments come in order."""
    if not tensors:
        return
    chunks = cut(align(None, [Checkpoint(path.name, path.parent, (path,), tensors)]))
    for chunk, segments in zip(chunks, run_on_threads(hash_chunk, chunks, workers), strict=True):
        num_bytes = chunk.count * chunk.tensor.reference.dtype.itemsize
        yield chunk.tensor.name, [each.hex() for each in segments], num_bytes


def _hash_problems(info: TensorInfo, expected: list[str], found: list[str]) -> Iterator[str]:
    if found == expected:
        return
    if len(found) != len(expected):
        yield f"{info.path}: tensor {info.name} has another size than the manifest says"
        return
    segment = next(place for place, digest in enumerate(found) if digest != expected[place])
    first = segment * CHUNK_ELEMENTS
    last = min(info.num_elements, first + CHUNK_ELEMENTS) - 1
    yield (
        f"{info.path}: tensor {info.name} holds other data than was written (between elements "
        f"{first:,} and {last:,}, as far as the hashes tell)"
    )
