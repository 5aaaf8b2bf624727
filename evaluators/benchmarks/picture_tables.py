"""Tables of questions with pictures: VLMEvalKit's TSV, the hub's parquet, JSON beside files.

VLMEvalKit's layout (vlmeval/dataset/image_base.py at e8e78f0): a row a question, with the picture
in base64 in the column ``image``; a short value there is the index of the row that has the picture;
``image_path`` names a file instead.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.benchmarks.files import read_json, read_json_lines
from evaluators.pictures import (
    PictureSource,
    decode_base64,
    inside,
    open_header,
    picture_bytes,
    picture_digest,
    read_file,
)
from nan_merge.errors import DataError, MissingExtraError

MOST_REFERENCE = 64
"""A cell of so many characters is the index of another row and not a picture."""
OnPicture = Callable[[str, bytes], object]


@dataclass(frozen=True)
class PictureRow:
    """One question of a table.

    Attributes:
        place: "FILE:LINE", or "FILE: row N".
        values: Column -> value, without the pictures.
        images: What the question shows.
    """

    place: str
    values: Mapping[str, Any]
    images: tuple[PictureSource, ...]

    def text(self, key: str, default: str | None = None) -> str:
        """A column's text.

        Raises:
            DataError: If it is missing or blank and there is no default.
        """
        value = self.values.get(key)
        text = "" if value is None else str(value)
        if not text.strip():
            if default is not None:
                return default
            raise DataError(f"{self.place}: {key} is missing or blank, expected text")
        return text


def find_file(folder: Path, patterns: Sequence[str], benchmark: str) -> list[Path]:
    """The files of the first pattern that a data folder, or its `data`, has.

    Raises:
        DataError: If it has none; with all that would do.
    """
    for pattern in patterns:
        for place in (folder, folder / "data"):
            if found := sorted(place.glob(pattern)):
                return found
    raise DataError(
        f"{folder}: holds no data of {benchmark}, expected one of {', '.join(patterns)}"
    )


def read_picture_rows(
    paths: Sequence[Path], image_column: str, check: OnPicture = open_header
) -> list[PictureRow]:
    """The rows of a .tsv, .parquet, .json or .jsonl file, or of several parts of one.

    Args:
        paths: The files.
        image_column: Where JSON and parquet have the picture. A TSV has it in ``image`` or
            ``image_path``.
        check: Called with the place and the bytes of every picture; by default its header is read.

    Raises:
        DataError: If a file is missing or damaged, or a picture is missing, broken or too large.
    """
    rows = [row for path in paths for row in _read(path, image_column, check)]
    if not rows:
        raise DataError(f"{paths[0]}: has no questions")
    return rows


def _read(path: Path, image_column: str, check: OnPicture) -> Iterator[PictureRow]:
    if path.suffix == ".tsv":
        yield from _read_tsv(path, check)
    elif path.suffix == ".parquet":
        yield from _read_parquet(path, image_column, check)
    else:
        for place, record in _json_records(path):
            images = _named_pictures(path.parent, place, record.get(image_column), check)
            yield PictureRow(place, record, images)


def _json_records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a list, of a table of objects, or of lines."""
    if path.suffix == ".jsonl":
        return read_json_lines(path)
    content = read_json(path)
    records: list[Any] = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(content, dict | list):
        raise DataError(f"{path}: expected a list of objects such as {{...}}")
    found: list[tuple[str, dict[str, Any]]] = []
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise DataError(f"{path}: row {number}: expected an object such as {{...}}")
        found.append((f"{path}: row {number}", record))
    return found


def _named_pictures(
    folder: Path, place: str, names: Any, check: OnPicture
) -> tuple[PictureSource, ...]:
    listed = names if isinstance(names, list) else [names]
    found: list[PictureSource] = []
    for name in listed:
        if not isinstance(name, str) or not name.strip():
            raise DataError(f"{place}: names no image")
        path = inside(folder, place, name)
        content = read_file(place, path)
        check(place, content)
        found.append(PictureSource(str(path), picture_digest(content)))
    return tuple(found)


def _read_parquet(path: Path, image_column: str, check: OnPicture) -> Iterator[PictureRow]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        message = "parquet needs pyarrow: pip install 'nan-merge[language]'"
        raise MissingExtraError(message) from error
    number = 0
    try:
        for batch in ParquetFile(path).iter_batches(batch_size=64):
            for record in batch.to_pylist():
                place = f"{path}: row {number + 1}"
                if record.get(image_column) is None:
                    raise DataError(f"{place}: has no image in column {image_column}")
                content = _bytes_at(place, record.pop(image_column))
                check(place, content)
                digest = picture_digest(content)
                source = PictureSource(str(path), digest, cell=(image_column, number))
                yield PictureRow(place, record, (source,))
                number += 1
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: is not parquet: {error}") from error


def _bytes_at(place: str, cell: Any) -> bytes:
    try:
        return picture_bytes(cell)
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


@contextmanager
def _long_cells() -> Generator[None]:
    """Within, cells of a table may be longer than the csv module thinks is likely."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


@dataclass(frozen=True)
class _RawRow:
    place: str
    values: dict[str, str]
    start: int
    raw: bytes


@contextmanager
def _explaining(path: Path) -> Generator[None]:
    """Within, what goes wrong with a table is an error that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error}). Fetch the file again.") from error
    except csv.Error as error:
        raise DataError(f"{path}: is no table with tabs: {error}") from error


def _raw_rows(path: Path) -> Iterator[_RawRow]:
    """Records of a TSV with the bytes that they are made of, one after the other."""
    consumed: list[bytes] = []
    start, line = 0, 1

    def lines() -> Iterator[str]:
        for text in file:
            consumed.append(text)
            yield text.decode("utf-8" if start or len(consumed) > 1 else "utf-8-sig")

    with _explaining(path), path.open("rb") as file, _long_cells():
        reader = csv.reader(lines(), delimiter="\t", strict=True)
        header = next(reader, [])
        while True:
            start, line = start + sum(map(len, consumed)), reader.line_num + 1
            consumed.clear()
            cells = next(reader, None)
            if cells is None:
                return
            if cells and len(cells) != len(header):
                count = f"{len(cells)} columns, expected {len(header)}"
                raise DataError(f"{path}:{line}: has {count}")
            values = dict(zip(header, cells, strict=False))
            if values:
                yield _RawRow(f"{path}:{line}", values, start, b"".join(consumed))


def _read_tsv(path: Path, check: OnPicture) -> list[PictureRow]:
    rows: list[tuple[str, dict[str, str], str, tuple[PictureSource, ...]]] = []
    by_index: dict[str, tuple[PictureSource, ...]] = {}
    for row in _raw_rows(path):
        image, values = row.values.pop("image", ""), row.values
        pictures: tuple[PictureSource, ...] = ()
        if len(image) > MOST_REFERENCE:
            pictures = tuple(_spans(path, row, image, check))
        elif not image.strip():
            names = _listed(values.get("image_path", ""))
            pictures = _named_pictures(path.parent, row.place, names, check)
        index = values.get("index", "").strip()
        if index in by_index:
            raise DataError(f"{row.place}: index {index!r} is there twice")
        if pictures and index:
            by_index[index] = pictures
        rows.append((row.place, values, image.strip(), pictures))
    found: list[PictureRow] = []
    for place, values, reference, pictures in rows:
        if not pictures and reference not in by_index:
            raise DataError(
                f"{place}: its image is that of index {reference!r}, and no row with that index "
                "has one. Fetch the file again."
            )
        found.append(PictureRow(place, values, pictures or by_index[reference]))
    return found


def _listed(text: str) -> list[str]:
    """The names in a cell: one, or several as Python writes a list."""
    if not text.startswith("["):
        return [text]
    return [one or other for one, other in re.findall(r"'([^']+)'|\"([^\"]+)\"", text)] or [""]


def _spans(path: Path, row: _RawRow, cell: str, check: OnPicture) -> Iterator[PictureSource]:
    """The pictures in a cell, one or a list, each by where its text begins in the file."""
    parts = re.findall(r"[\w+/=-]+", cell) if cell.startswith("[") else [cell.strip()]
    after = 0
    for part in parts:
        content = decode_base64(row.place, part)
        check(row.place, content)
        at = row.raw.index(part.encode(), after)
        after = at + len(part)
        yield PictureSource(str(path), picture_digest(content), span=(row.start + at, len(part)))
