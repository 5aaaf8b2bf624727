"""Read the files that benchmarks come in; what is wrong names the file and the line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nan_merge.errors import DataError


@dataclass(frozen=True)
class Row:
    """One record of a file.

    Attributes:
        place: "FILE:LINE" where it begins.
        cells: Its fields, in the file's order.
    """

    place: str
    cells: tuple[str, ...]


def read_text(path: Path) -> str:
    """A file of UTF-8 text, line ends as they are, without a byte order mark.

    Raises:
        DataError: If it is missing, cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: byte {error.start} is not UTF-8. Fetch the file again, or save it "
            "as UTF-8."
        ) from error


def read_csv(path: Path, header: Sequence[str] | None = None) -> list[Row]:
    """The records of a CSV file; quoted fields may span lines.

    Args:
        path: The file.
        header: Columns that the first line must name, in any order and among others; the cells
            are then those columns. None if there is no header.

    Raises:
        DataError: As `read_text`; if a record has more or fewer columns than the first one, if a
            column is missing, or if there is no record.
    """
    rows = list(_parse_csv(path, read_text(path)))
    if header is not None:
        rows = _choose_columns(path, rows, header)
    if not rows:
        raise DataError(f"{path}: has no questions")
    return rows


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        DataError: As `read_text`, or if it is not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{path}: is not JSON: {error}") from error


def read_json_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a file with one JSON object a line, each with its "FILE:LINE".

    Raises:
        DataError: As `read_text`; if a line is no JSON object, or there is none.
    """
    records: list[tuple[str, dict[str, Any]]] = []
    # Not splitlines: JSON leaves U+2028 and its like in strings as they are.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{place}: is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(f"{place}: expected an object such as {{...}}")
        records.append((place, record))
    if not records:
        raise DataError(f"{path}: has no questions")
    return records


def text_field(place: str, record: dict[str, Any], key: str) -> str:
    """A field of a record that must be text and not blank.

    Raises:
        DataError: If it is missing, no text, or blank.
    """
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        found = "is missing" if key not in record else f"is {value!r}"
        raise DataError(f"{place}: {key} {found}, expected text")
    return value


def check_subsets(paths: Iterable[Path], benchmark: str) -> None:
    """See that all files of a benchmark are there.

    Raises:
        DataError: Naming all that are not.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        names = ", ".join(path.name for path in missing[:10])
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise DataError(
            f"{missing[0].parent}: {names}{more} missing. {benchmark} is an average over all of "
            "its subsets, and without them it would be another number."
        )


def _parse_csv(path: Path, text: str) -> Iterable[Row]:
    reader = csv.reader(io.StringIO(text, newline=""))
    num_columns, line = 0, 1
    try:
        for cells in reader:
            if cells:
                num_columns = num_columns or len(cells)
                if len(cells) != num_columns:
                    raise DataError(
                        f"{path}:{line}: has {len(cells)} columns, expected {num_columns}"
                    )
                yield Row(f"{path}:{line}", tuple(cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{line}: is not CSV: {error}") from error


def _choose_columns(path: Path, rows: list[Row], header: Sequence[str]) -> list[Row]:
    names = rows[0].cells if rows else ()
    absent = [name for name in header if name not in names]
    if absent:
        raise DataError(
            f"{path}:1: has no column {', '.join(absent)}, but {', '.join(names) or 'nothing'}"
        )
    places = [names.index(name) for name in header]
    return [Row(row.place, tuple(row.cells[place] for place in places)) for row in rows[1:]]
