"""Crops of photographs: ``texture`` and ``photo``.

Every picture is cut into a 4 x 4 grid. One cell of each row is for testing, and a crop never
leaves its cell, so no pixel is in both splits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from evaluators.image_sets import LabelledImages
from evaluators.quickstart_images.scans import IMAGE_SIZE, NUM_TEST, NUM_TRAIN, missing_package
from nan_merge.errors import DataError

GRID = 4
TEST_COLUMN_OF_ROW = (1, 3, 0, 2)
LARGEST_CROP = 64  # pixels; larger crops are scaled down to 32, so scenes show more than a patch

# Class name -> (package, folder in it, file). All of them lie in the packages themselves.
TEXTURES = {
    "brick": ("skimage", "data", "brick.png"),
    "grass": ("skimage", "data", "grass.png"),
    "gravel": ("skimage", "data", "gravel.png"),
    "coins": ("skimage", "data", "coins.png"),
    "moon": ("skimage", "data", "moon.png"),
    "cell": ("skimage", "data", "cell.png"),
    "page": ("skimage", "data", "page.png"),
}
PHOTOS = {
    "temple": ("sklearn", "datasets/images", "china.jpg"),
    "flower": ("sklearn", "datasets/images", "flower.jpg"),
    "officer": ("matplotlib", "mpl-data/sample_data", "grace_hopper.jpg"),
    "astronaut": ("skimage", "data", "astronaut.png"),
    "cat": ("skimage", "data", "chelsea.png"),
    "coffee": ("skimage", "data", "coffee.png"),
    "galaxies": ("skimage", "data", "hubble_deep_field.jpg"),
    "tissue": ("skimage", "data", "ihc.png"),
    "retina": ("skimage", "data", "retina.jpg"),
    "rocket": ("skimage", "data", "rocket.jpg"),
    "motorcycle": ("skimage", "data", "motorcycle_left.png"),
}
DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}


def build_texture(split: str, rng: np.random.Generator) -> LabelledImages:
    """Draw crops at full resolution, with random gain and offset: brightness must not tell."""
    draw_crop = partial(_draw_crop_with_light, split=split, rng=rng)
    return _draw_balanced("texture", split, list(TEXTURES), rng, draw_crop)


def build_photo(split: str, rng: np.random.Generator) -> LabelledImages:
    """Draw crops of 32 to 64 pixels a side, scaled to 32."""
    draw_crop = partial(draw_photo_crop, split=split, rng=rng)
    return _draw_balanced("photo", split, list(PHOTOS), rng, draw_crop)


def draw_photo_crop(name: str, *, split: str, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """One crop of a photo, uint8 (32, 32, 3), and its source, e.g. ``cat-cell-2-0``."""
    return _crop(PHOTOS[name], name, LARGEST_CROP, split, rng)


def _draw_crop_with_light(
    name: str, *, split: str, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    crop, source = _crop(TEXTURES[name], name, IMAGE_SIZE, split, rng)
    gain, offset = rng.uniform(0.6, 1.4), rng.uniform(-40, 40)
    middle = crop.mean()
    lit = (crop - middle) * gain + middle + offset
    return np.clip(np.rint(lit), 0, 255).astype(np.uint8), source


def _draw_balanced(
    task: str,
    split: str,
    names: list[str],
    rng: np.random.Generator,
    draw_crop: Callable[[str], tuple[np.ndarray, str]],
) -> LabelledImages:
    """Draw equally many crops of every picture, in random order."""
    num_images = NUM_TRAIN if split == "train" else NUM_TEST
    labels = rng.permutation(np.arange(num_images) % len(names)).astype(np.int64)
    crops = [draw_crop(names[label]) for label in labels]
    return LabelledImages(
        images=np.stack([image for image, _ in crops]),
        labels=labels,
        sample_ids=tuple(f"{task}/{split}/{i:05d}/{crop[1]}" for i, crop in enumerate(crops)),
    )


def _crop(
    file: tuple[str, str, str],
    name: str,
    largest: int,
    split: str,
    rng: np.random.Generator,
) -> tuple[np.ndarray, str]:
    from PIL import Image

    picture = read_picture(*file)
    row = int(rng.integers(GRID))
    test_column = TEST_COLUMN_OF_ROW[row]
    others = [column for column in range(GRID) if column != test_column]
    column = test_column if split == "test" else int(rng.choice(others))
    height, width = picture.shape[0] // GRID, picture.shape[1] // GRID  # of a cell
    side = int(rng.integers(IMAGE_SIZE, min(largest, height, width) + 1))
    top = row * height + int(rng.integers(height - side + 1))
    left = column * width + int(rng.integers(width - side + 1))
    crop = picture[top : top + side, left : left + side]
    if side != IMAGE_SIZE:
        size = (IMAGE_SIZE, IMAGE_SIZE)
        crop = np.asarray(Image.fromarray(crop).resize(size, Image.Resampling.BOX))
    return crop, f"{name}-cell-{row}-{column}"


@cache
def read_picture(package: str, folder: str, file: str) -> np.ndarray:
    """One picture that an installed package carries, uint8 RGB (height, width, 3).

    Raises:
        MissingExtraError: If the package is not installed.
        DataError: If this version of it lacks the file.
    """
    from PIL import Image

    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise missing_package(DISTRIBUTIONS[package])
    path = Path(spec.origin).parent / folder / file
    if not path.is_file():
        raise DataError(f"The installed {DISTRIBUTIONS[package]} carries no {folder}/{file}.")
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
