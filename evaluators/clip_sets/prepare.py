"""Decode a set once into a file that every model maps into memory: uint8 (n, size, size, 3).

Part by part, each with one writer and a note of what it wrote, so that a preparation that was
killed goes on where it stood. The folder gets its name when it is whole.

A sample is called after the content of its picture, ``SUN397/test/0f3a...``: the same whether the
set lies in folders, in parquet or in its authors' archives. Equal pictures count as one source.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

from evaluators.clip_sets import ClipSet
from evaluators.clip_sets.layouts import list_images
from evaluators.clip_sets.listing import Listing
from evaluators.clip_sets.pictures import fit_picture, open_picture, picture_digest
from evaluators.image_sets import HEADER, PIXELS
from nan_merge.errors import DataError
from nan_merge.fingerprint import digest_text
from nan_merge.publish import explain_write_errors, partial_path, write_text_atomically
from nan_merge.tasks import report_progress

DATA_VERSION = 1  # raise it whenever other pixels or ids would be written
IMAGES_PER_PART = 1000


def prepared_name(clip_set: ClipSet, listing: Listing, split: str, size: int) -> str:
    """Name of the prepared folder: changes with the files, their sizes and their times."""
    digest = hashlib.sha256(f"{DATA_VERSION} {version('pillow')} {listing.layout}".encode())
    if clip_set.classes:  # of a set of one's own they may change; templates are in the header, too
        digest.update(json.dumps([clip_set.classes, clip_set.templates]).encode())
    for path in listing.files:
        status = path.stat()
        digest.update(f"{path.absolute()} {status.st_size} {status.st_mtime_ns}\n".encode())
    return f"{clip_set.name}-{split}-{size}-{digest.hexdigest()[:16]}"


def start_preparation(staging: Path, num_images: int, size: int) -> None:
    """Make the empty file of the pixels in a folder, unless an earlier run did.

    Raises:
        OutputError: If the disk is full or not writable.
    """
    path = staging / PIXELS
    if path.is_file():
        return
    with explain_write_errors(path):
        partial = partial_path(path)
        shape = (num_images, size, size, 3)
        np.lib.format.open_memmap(partial, "w+", dtype=np.uint8, shape=shape).flush()
        partial.replace(path)


def parts_of(num_images: int) -> list[tuple[int, int]]:
    """Where parts begin and end."""
    starts = range(0, num_images, IMAGES_PER_PART)
    return [(start, min(start + IMAGES_PER_PART, num_images)) for start in starts]


def decode_part(
    clip_set: ClipSet, folder: Path, split: str, size: int, staging: Path, start: int, stop: int
) -> list[str]:
    """Task body: decode the images from ``start`` to ``stop`` into their places.

    Returns:
        What is wrong with images that cannot be used; then the part is not done.

    Raises:
        DataError: If the set cannot be listed any more.
        OutputError: If the disk is full or not writable.
    """
    note = _note_path(staging, start)
    if note.is_file():
        return []
    listing = _list_once(clip_set, folder, split)
    problems: list[str] = []
    rows: list[tuple[str, str]] = []
    with explain_write_errors(staging / PIXELS), (staging / PIXELS).open("r+b") as file:
        row_bytes = size * size * 3
        file.seek(_first_byte(staging / PIXELS) + start * row_bytes)
        for index in range(start, stop):
            place = listing.places[index]
            try:
                picture = open_picture(listing.read(index), place)
                pixels = np.ascontiguousarray(fit_picture(picture, size))
            except (DataError, OSError) as error:
                problems.append(str(error) if isinstance(error, DataError) else f"{place}: {error}")
                file.seek(row_bytes, os.SEEK_CUR)
                continue
            file.write(pixels.data)
            fitted = hashlib.blake2b(pixels.data, digest_size=16).hexdigest()
            rows.append((picture_digest(picture), fitted))
            report_progress(1)
        file.flush()
        os.fsync(file.fileno())
    if not problems:
        write_text_atomically(note, json.dumps(rows))
    return problems


def finish_preparation(clip_set: ClipSet, listing: Listing, split: str, staging: Path) -> None:
    """Name the samples and write the header, when all parts are done.

    Raises:
        OutputError: If the disk is full or not writable.
    """
    rows: list[tuple[str, str]] = []
    notes = [_note_path(staging, start) for start, _ in parts_of(len(listing.places))]
    for note in notes:
        rows += [(picture, fitted) for picture, fitted in json.loads(note.read_text())]
    labels = [int(label) for label in listing.labels]
    ids = _sample_ids(f"{clip_set.name}/{split}", [row[0] for row in rows], labels)
    header = {
        "name": clip_set.name,
        "split": split,
        "class_names": clip_set.class_names,
        "templates": clip_set.templates,
    }
    lines = sorted(zip(ids, labels, (row[1] for row in rows), strict=True))
    digest = digest_text(json.dumps([header, lines], sort_keys=True))
    content = {**header, "digest": digest, "labels": labels, "sample_ids": ids}
    write_text_atomically(staging / HEADER, json.dumps(content))
    for note in notes:
        note.unlink()


def clip_sample_cluster(sample_id: str) -> str:
    """What equal pictures share: the id without the number of the copy."""
    return sample_id.partition("-")[0]


def _sample_ids(start: str, pictures: Sequence[str], labels: Sequence[int]) -> list[str]:
    """Ids that do not depend on the order of the images; copies are numbered by their labels."""
    ids = [""] * len(pictures)
    copies: dict[str, int] = {}
    for index in sorted(range(len(pictures)), key=lambda place: (pictures[place], labels[place])):
        picture = pictures[index]
        copies[picture] = copies.get(picture, 0) + 1
        number = f"-{copies[picture]}" if copies[picture] > 1 else ""
        ids[index] = f"{start}/{picture}{number}"
    return ids


@lru_cache(maxsize=1)  # a worker decodes one set after another
def _list_once(clip_set: ClipSet, folder: Path, split: str) -> Listing:
    return list_images(clip_set, folder, split)


def _first_byte(path: Path) -> int:
    return np.load(path, mmap_mode="r", allow_pickle=False).offset


def _note_path(staging: Path, start: int) -> Path:
    return staging / f"part-{start:07d}.json"
