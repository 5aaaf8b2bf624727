"""Find the images of a set in its folder: the authors' layout, parquet, or a folder per class."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from evaluators.clip_sets import CLIP_SETS, ClipSet, originals
from evaluators.clip_sets.listing import Listing, list_files, match_classes, missing_classes
from nan_merge.errors import DataError, MissingExtraError

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
)
# What task_vectors calls its test images: a folder "val" in two sets.
_TEST_IS_VAL = ("SUN397", "DTD")
# Where the authors of task arithmetic keep a set, if not under its name.
_OTHER_FOLDERS = {"EuroSAT": ("EuroSAT_splits",)}

Finder = Callable[[ClipSet, Path, str], Listing | None]


def set_folder(name: str, data: Path) -> Path | None:
    """Where a set lies in a folder of data: under its name, or what its copies are called."""
    others: tuple[str, ...] = ()
    if name in CLIP_SETS:
        repository = CLIP_SETS[name].repository.partition("/")[2]
        others = (name.lower(), repository, *_OTHER_FOLDERS.get(name, ()))
    return next((data / each for each in (name, *others) if (data / each).is_dir()), None)


def list_images(clip_set: ClipSet, folder: Path, split: str = "test") -> Listing:
    """Find the images of one split, and say what is wrong with them.

    Args:
        clip_set: Which set.
        folder: Its own.
        split: ``train`` or ``test``.

    Raises:
        DataError: If no layout is known in which the folder would have this split, or a file that
            lists images cannot be read.
        MissingExtraError: If a library is missing that reads this layout.
    """
    finders: tuple[Finder, ...] = (
        *originals.FINDERS.get(clip_set.name, ()),
        find_parquet,
        find_class_folders,
    )
    for find in finders:
        listing = find(clip_set, folder, split)
        if listing is not None:
            if not listing.places and not listing.problems:
                raise DataError(f"{folder}: the {split} split of {clip_set.name} has no images.")
            absent = [] if listing.problems else missing_classes(clip_set, listing.labels)
            return listing.with_findings(absent)
    raise DataError(
        f"{folder} holds no {split} split of {clip_set.name} in a layout that is known: "
        f"{split}/CLASS/*.jpg, {split}-*.parquet as on the hub, or the authors' own files "
        "(docs/images.md). Is it the right folder?"
    )


def find_class_folders(clip_set: ClipSet, folder: Path, split: str) -> Listing | None:
    """``SPLIT/CLASS/IMAGE``, as torchvision's ImageFolder reads it."""
    names = [split]
    if split == "test" and clip_set.name in _TEST_IS_VAL:
        names.append("val")
    parents = (folder, *(folder / each for each in _OTHER_FOLDERS.get(clip_set.name, ())))
    found = [parent / each for parent in parents for each in names if (parent / each).is_dir()]
    if not found:
        return None
    root = found[0]
    classes = sorted(each for each in root.iterdir() if each.is_dir() and each.name[0] != ".")
    labels, problem = match_classes(clip_set, [each.name for each in classes], str(root))
    if problem:
        return list_files("class folders", (), []).with_findings([problem])
    images = [
        (path, label)
        for each, label in zip(classes, labels, strict=True)
        for path in sorted(each.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    return list_files("class folders", (), images)


def find_parquet(clip_set: ClipSet, folder: Path, split: str) -> Listing | None:
    """``SPLIT-*.parquet`` with columns of images (their bytes) and labels, as on the hub."""
    pattern = clip_set.parquet.format(split=split)
    patterns = (pattern, Path(pattern).name, f"*/{Path(pattern).name}")
    files = next((found for each in patterns if (found := sorted(folder.glob(each)))), [])
    if not files:
        return None
    if len({file.parent for file in files}) > 1:
        folders = ", ".join(sorted({str(file.parent) for file in files}))
        raise DataError(f"{folder} has parquet files of {split} in several folders: {folders}")
    columns, numbers, names = _read_labels(files)
    rows = [(file, row) for file, count in zip(files, columns, strict=True) for row in range(count)]
    listing = Listing(
        layout="parquet",
        files=tuple(files),
        places=[f"{file}, row {row}" for file, row in rows],
        labels=numbers,
        read=lambda index: _read_row(*rows[index]),
    )
    return _with_class_labels(clip_set, listing, names)


def _with_class_labels(clip_set: ClipSet, listing: Listing, names: Sequence[str] | None) -> Listing:
    """Turn the data's own class numbers into labels, by the names that it gives them."""
    where, numbers = str(listing.files[0]), listing.labels
    if names is None:
        outside = sorted({number for number in numbers if not 0 <= number < _size(clip_set)})
        if outside:
            most = _size(clip_set) - 1
            problem = f"{where}: labels {outside[:5]} are outside of 0 to {most}"
            return listing.with_findings([problem])
        return listing.with_findings(
            (), ["labels are numbers without names; they are taken in the order of the prompts"]
        )
    labels, problem = match_classes(clip_set, names, where)
    if problem:
        return listing.with_findings([problem])
    notes: list[str] = []
    if labels != sorted(labels):
        notes.append("classes come in another order than the prompts; they were matched by name")
    return Listing(
        layout=listing.layout,
        files=listing.files,
        places=listing.places,
        labels=[labels[number] for number in numbers],
        read=listing.read,
        notes=tuple(notes),
    )


def _size(clip_set: ClipSet) -> int:
    return len(clip_set.class_names)


def _read_labels(files: Sequence[Path]) -> tuple[list[int], list[int], list[str] | None]:
    """Rows of each file, every row's class number, and the names of the classes if there are."""
    parquet, counts, values = _parquet(), list[int](), list[Any]()
    names: list[str] | None = None
    for file in files:
        try:
            schema = parquet.read_schema(file)
            column = _column(schema.names, ("label", "labels", "class"), file)
            found: list[Any] = parquet.read_table(file, columns=[column])[column].to_pylist()
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: is no parquet file that can be read: {error}") from error
        if None in found:
            raise DataError(f"{file}, row {found.index(None)}: the label is missing")
        names = names or _names_of_classes(schema.metadata or {}, column)
        counts.append(len(found))
        values += found
    if values and isinstance(values[0], str):
        names = sorted(set(values))
        return counts, [names.index(value) for value in values], names
    return counts, [int(value) for value in values], names


def _names_of_classes(metadata: Mapping[bytes, bytes], column: str) -> list[str] | None:
    """The names that the library `datasets` writes beside a column of class numbers."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, ValueError, TypeError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _column(columns: Sequence[str], wanted: Sequence[str], file: Path) -> str:
    found = [name for name in wanted if name in columns]
    if not found:
        raise DataError(
            f"{file}: has no column {' or '.join(wanted)}, but {', '.join(columns) or 'nothing'}"
        )
    return found[0]


def _read_row(file: Path, row: int) -> bytes:
    parquet = _open_parquet(str(file))
    for group in range(parquet.num_row_groups):
        count = parquet.metadata.row_group(group).num_rows
        if row < count:
            content = _read_group(str(file), group)[row]
            break
        row -= count
    else:
        raise DataError(f"{file}: has no row {row}")
    encoded = cast("Any", content.get("bytes") if isinstance(content, dict) else content)
    if not isinstance(encoded, bytes):
        raise DataError(f"{file}: images must be their bytes, or bytes with a path; got none")
    return encoded


@lru_cache(maxsize=4)
def _open_parquet(file: str) -> Any:
    return _parquet().ParquetFile(file)


@lru_cache(maxsize=1)  # rows are read in their order
def _read_group(file: str, group: int) -> list[Any]:
    parquet = _open_parquet(file)
    column = _column(parquet.schema_arrow.names, ("image", "img"), Path(file))
    return parquet.read_row_group(group, columns=[column])[column].to_pylist()


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            "images in parquet need pyarrow: pip install 'nan-merge[language]'"
        ) from error
    return parquet
