"""Labelled images of one split of one task: the record that training and evaluation share."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from nan_merge.errors import DataError
from nan_merge.publish import explain_write_errors, partial_path, sync_path

PIXELS, HEADER = "images.npy", "set.json"
"""Files of a set whose images are mapped into memory."""


class LabelledImages(NamedTuple):
    """What a task's build function returns; see ``ImageSet`` for shapes and dtypes."""

    images: np.ndarray
    labels: np.ndarray
    sample_ids: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """One split of one image-classification task.

    Attributes:
        name: The task, e.g. ``mnist``.
        split: ``train`` or ``test``.
        images: uint8 RGB, shape (n, height, width, 3); may be a memory map.
        labels: int64, shape (n,); indices into ``class_names``.
        sample_ids: Stable and unique; each ends with the sources of its image, e.g.
            ``mnist/test/00412/scan-4711``.
        class_names: One word or phrase a class.
        templates: CLIP prompts with ``{}`` where the class name goes.
        kept_digest: What was found when the images were prepared, if they are too many to be
            hashed whenever they are opened.

    Raises:
        DataError: If the parts do not fit each other.
    """

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    sample_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    kept_digest: str | None = None

    def __post_init__(self) -> None:
        problem = _find_problem(self)
        if problem:
            raise DataError(f"image set {self.name}/{self.split}: {problem}.")

    def digest(self) -> str:
        """Hash everything that training or evaluation can see; sha256 in hexadecimal."""
        if self.kept_digest is not None:
            return self.kept_digest
        digest = hashlib.sha256(_header(self).encode())
        digest.update(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images, dtype="u1").tobytes())
        digest.update(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        return digest.hexdigest()


def save_image_set(image_set: ImageSet, path: Path) -> None:
    """Write one ``.npz`` file; a reader sees the old file or the new, never a part.

    Raises:
        OutputError: If the disk is full or not writable.
    """
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(path)
        try:
            with partial.open("wb") as file:
                np.savez_compressed(
                    file,
                    header=np.array(_header(image_set)),
                    digest=np.array(image_set.digest()),
                    images=image_set.images,
                    labels=image_set.labels,
                )
            sync_path(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def load_image_set(path: Path) -> ImageSet:
    """Read what ``save_image_set`` wrote and check its digest.

    Of a folder that `mapped_images` prepared the images are not read but mapped into memory, and
    only sizes are checked.

    Raises:
        DataError: If the file is missing, damaged or was written by something else.
    """
    if path.is_dir():
        return _map_image_set(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            header = json.loads(str(arrays["header"]))
            image_set = ImageSet(
                name=header["name"],
                split=header["split"],
                images=arrays["images"],
                labels=arrays["labels"],
                sample_ids=tuple(header["sample_ids"]),
                class_names=tuple(header["class_names"]),
                templates=tuple(header["templates"]),
            )
            expected = str(arrays["digest"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} is not a readable image set: {error}. Delete it.") from error
    if image_set.digest() != expected:
        raise DataError(f"{path} does not match its own digest. Delete it to build it again.")
    return image_set


def _map_image_set(folder: Path) -> ImageSet:
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
        return ImageSet(
            name=header["name"],
            split=header["split"],
            images=np.load(folder / PIXELS, mmap_mode="r", allow_pickle=False),
            labels=np.array(header["labels"], np.int64),
            sample_ids=tuple(header["sample_ids"]),
            class_names=tuple(header["class_names"]),
            templates=tuple(header["templates"]),
            kept_digest=header["digest"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is not a readable image set: {error}. Delete it.") from error


def _header(image_set: ImageSet) -> str:
    fields = ("name", "split", "sample_ids", "class_names", "templates")
    return json.dumps({field: getattr(image_set, field) for field in fields}, sort_keys=True)


def _find_problem(image_set: ImageSet) -> str | None:
    images, labels, ids = image_set.images, image_set.labels, image_set.sample_ids
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        return f"images must be uint8 (n, height, width, 3), got {images.dtype} {images.shape}"
    if labels.shape != images.shape[:1] or labels.dtype != np.int64:
        return f"labels must be int64 ({len(images)},), got {labels.dtype} {labels.shape}"
    if len(ids) != len(images) or len(set(ids)) != len(ids):
        return f"{len(images)} images need as many different sample ids, got {len(set(ids))}"
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(image_set.class_names):
        return f"labels reach {labels.max()}, but there are {len(image_set.class_names)} classes"
    if not image_set.templates or any("{}" not in each for each in image_set.templates):
        return "every template needs {} where the class name goes"
    return None
