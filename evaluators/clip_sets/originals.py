"""The layouts in which the eight sets' own authors publish them, as their archives unpack."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.benchmarks.files import read_text
from evaluators.clip_sets import ClipSet
from evaluators.clip_sets.listing import Listing, list_files, match_classes
from nan_merge.errors import DataError, MissingExtraError

Finder = Callable[[ClipSet, Path, str], Listing | None]


def find_sun397(clip_set: ClipSet, folder: Path, split: str) -> Listing | None:
    """``a/abbey/*.jpg`` and partition 01: ``Testing_01.txt``, lines such as ``/a/abbey/x.jpg``."""
    name = {"test": "Testing_01.txt", "train": "Training_01.txt"}[split]
    lists = _first_file(folder, (name, f"Partitions/{name}", f"SUN397/{name}"))
    if lists is None:
        return None
    lines = [line.strip("/") for line in _lines(lists)]
    root = folder / "SUN397" if (folder / "SUN397").is_dir() else folder
    return _listed(clip_set, lists, [(root / line, line.rpartition("/")[0]) for line in lines])


def find_dtd(clip_set: ClipSet, folder: Path, split: str) -> Listing | None:
    """``images/CLASS/*.jpg`` and ``labels/test1.txt``; train and validation make up train."""
    root = folder / "dtd" if (folder / "dtd" / "labels").is_dir() else folder
    names = ("test1.txt",) if split == "test" else ("train1.txt", "val1.txt")
    lists = [root / "labels" / name for name in names]
    if not all(each.is_file() for each in lists):
        return None
    lines = [line for each in lists for line in _lines(each)]
    images = [(root / "images" / line, line.rpartition("/")[0]) for line in lines]
    return _listed(clip_set, lists[0], images)


def find_resisc45(clip_set: ClipSet, folder: Path, split: str) -> Listing | None:
    """``NWPU-RESISC45/CLASS/CLASS_001.jpg`` and torchgeo's list ``resisc45-test.txt``."""
    lists = _first_file(folder, (f"resisc45-{split}.txt", f"NWPU-RESISC45/resisc45-{split}.txt"))
    if lists is None:
        return None
    root = folder / "NWPU-RESISC45"
    lines = [line.rpartition("/")[2] for line in _lines(lists)]
    names = [line.rpartition("_")[0] for line in lines]
    pairs = zip(names, lines, strict=True)
    return _listed(clip_set, lists, [(root / name / line, name) for name, line in pairs])


def find_gtsrb(clip_set: ClipSet, folder: Path, split: str) -> Listing | None:
    """``Final_Test/Images/*.ppm`` and ``GT-final_test.csv``; for training, ``Training/CLASS``."""
    roots = (folder, folder / "GTSRB")
    if split == "train":
        root = next((each / "Training" for each in roots if (each / "Training").is_dir()), None)
        if root is None:
            return None
        images = [(path, path.parent.name) for path in sorted(root.glob("*/*.ppm"))]
        return _listed(clip_set, None, images)
    truth = _first_file(folder, ("GT-final_test.csv", "GTSRB/GT-final_test.csv"))
    root = next((each for each in roots if (each / "Final_Test" / "Images").is_dir()), None)
    if truth is None or root is None:
        return None
    rows = csv.DictReader(io.StringIO(read_text(truth)), delimiter=";", skipinitialspace=True)
    try:
        cells = [(row["Filename"], row["ClassId"]) for row in rows]
    except KeyError as error:
        raise DataError(f"{truth}: has no column {error}, separated by semicolons") from error
    images = [(root / "Final_Test" / "Images" / name, number) for name, number in cells]
    return _listed(clip_set, truth, images)


def find_cars(clip_set: ClipSet, folder: Path, split: str) -> Listing | None:
    """``cars_test/*.jpg``, ``cars_test_annos_withlabels.mat`` and ``devkit/cars_meta.mat``."""
    annotations = {
        "test": folder / "cars_test_annos_withlabels.mat",
        "train": folder / "devkit" / "cars_train_annos.mat",
    }[split]
    classes = folder / "devkit" / "cars_meta.mat"
    if not annotations.is_file() or not classes.is_file():
        return None
    names = [str(each) for each in np.atleast_1d(_read_mat(classes, "class_names"))]
    entries = np.atleast_1d(_read_mat(annotations, "annotations"))
    try:
        cells = [(str(entry["fname"]), int(entry["class"]) - 1) for entry in entries]
        images = [(folder / f"cars_{split}" / name, names[label]) for name, label in cells]
    except (ValueError, IndexError, TypeError) as error:
        raise DataError(f"{annotations}: not the annotations of Stanford Cars: {error}") from error
    return _listed(clip_set, annotations, images)


def find_svhn(clip_set: ClipSet, folder: Path, split: str) -> Listing | None:
    """``test_32x32.mat``: images (32, 32, 3, n), and labels in which 10 stands for 0."""
    path = folder / f"{split}_32x32.mat"
    if not path.is_file():
        return None
    images, labels = _read_mat(path, "X"), np.atleast_1d(_read_mat(path, "y"))
    if images.ndim != 4 or images.shape[2] != 3 or images.shape[3] != len(labels):
        raise DataError(f"{path}: X has shape {images.shape}, expected (32, 32, 3, {len(labels)})")
    return _of_pixels(clip_set, path, np.moveaxis(images, 3, 0), labels % 10)


def find_mnist(clip_set: ClipSet, folder: Path, split: str) -> Listing | None:
    """``t10k-images-idx3-ubyte``, also with ``.gz``, beside its labels or under ``raw/``."""
    stem = "t10k" if split == "test" else "train"
    for root in (folder, folder / "raw", folder / "MNIST" / "raw"):
        for end in ("", ".gz"):
            images = root / f"{stem}-images-idx3-ubyte{end}"
            labels = root / f"{stem}-labels-idx1-ubyte{end}"
            if images.is_file() and labels.is_file():
                return _of_pixels(clip_set, images, _read_idx(images), _read_idx(labels), labels)
    return None


FINDERS: Mapping[str, tuple[Finder, ...]] = {
    "SUN397": (find_sun397,),
    "Cars": (find_cars,),
    "RESISC45": (find_resisc45,),
    "SVHN": (find_svhn,),
    "GTSRB": (find_gtsrb,),
    "MNIST": (find_mnist,),
    "DTD": (find_dtd,),
}
"""How each set is recognised; EuroSAT comes without a split, and has no layout of its own."""


def _listed(clip_set: ClipSet, lists: Path | None, images: Sequence[tuple[Path, str]]) -> Listing:
    """A listing of files, each with what its class is called."""
    names = list(dict.fromkeys(name for _, name in images))
    labels, problem = match_classes(clip_set, names, str(lists or images[0][0].parent.parent))
    if problem:
        return list_files("the authors' files", (), []).with_findings([problem])
    label_of = dict(zip(names, labels, strict=True))
    found = [(path, label_of[name]) for path, name in images]
    return list_files("the authors' files", () if lists is None else (lists,), found)


def _of_pixels(
    clip_set: ClipSet, path: Path, images: np.ndarray, labels: np.ndarray, *others: Path
) -> Listing:
    """A listing of images that lie in one array."""
    problems: list[str] = []
    if len(images) != len(labels):
        problems.append(f"{path}: {len(images)} images, but {len(labels)} labels")
    outside = sorted({int(each) for each in labels} - set(range(len(clip_set.class_names))))
    if outside:
        problems.append(f"{path}: labels {outside[:5]} are no digits")
    return Listing(
        layout="the authors' files",
        files=(path, *others),
        places=[f"{path}, image {index}" for index in range(len(images))],
        labels=[int(each) for each in labels],
        read=lambda index: np.ascontiguousarray(images[index], dtype=np.uint8),
        problems=tuple(problems),
    )


def _first_file(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _read_idx(path: Path) -> np.ndarray:
    """The format of MNIST's authors: a big-endian header, then bytes."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    num_axes = content[3] if content[:3] == b"\0\0\x08" else 0
    shape = tuple(int(each) for each in np.frombuffer(content, ">i4", num_axes, 4))
    body = content[4 + 4 * num_axes :]
    if not num_axes or len(body) != int(np.prod(shape)):
        raise DataError(f"{path}: is no file of images or labels in MNIST's format, or is cut off")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _read_mat(path: Path, key: str) -> Any:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingExtraError(f"{path} needs scipy: pip install scipy") from error
    try:
        return loadmat(str(path), squeeze_me=True, variable_names=[key])[key]
    except KeyError as error:
        raise DataError(f"{path}: has no {key}") from error
    except (OSError, ValueError, NotImplementedError, TypeError) as error:
        raise DataError(f"{path}: is no Matlab file that can be read: {error}") from error
