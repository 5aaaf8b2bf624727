"""``street``: MNIST scans painted in colour over darkened photographs."""

from __future__ import annotations

import numpy as np

from evaluators.image_sets import LabelledImages
from evaluators.quickstart_images.pictures import PHOTOS, draw_photo_crop
from evaluators.quickstart_images.scans import (
    IMAGE_SIZE,
    NUM_TEST,
    NUM_TRAIN,
    mnist_rows,
    mnist_scans,
)

DARKENING = 0.6  # leaves the digit brighter than most backgrounds
DARKEST_INK = 90  # of 255, in every channel


def build_street(split: str, rng: np.random.Generator) -> LabelledImages:
    """Compose each image of one scan and one photo crop, both of the asked split."""
    scans, labels = mnist_scans()
    rows = rng.permutation(mnist_rows(split))[: NUM_TRAIN if split == "train" else NUM_TEST]
    names = list(PHOTOS)
    images, sample_ids = [], []
    for index, row in enumerate(rows):
        name = names[int(rng.integers(len(names)))]
        background, cell = draw_photo_crop(name, split=split, rng=rng)
        images.append(_paint(scans[row], background, rng))
        sample_ids.append(f"street/{split}/{index:05d}/scan-{row}/{cell}")
    return LabelledImages(np.stack(images), labels[rows], tuple(sample_ids))


def _paint(scan: np.ndarray, background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blend ink over the background, with the scan (28, 28) as its opacity; (32, 32, 3)."""
    ink = rng.integers(DARKEST_INK, 256, size=3)
    opacity = np.pad(scan / 255.0, (IMAGE_SIZE - scan.shape[0]) // 2)[..., None]
    blended = opacity * ink + (1 - opacity) * DARKENING * background
    return np.rint(blended).astype(np.uint8)
