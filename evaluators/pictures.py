"""Pictures of benchmarks: where each lies, and how it becomes what a model is shown.

Samples name the place of a picture and not its pixels, so that a shard of samples stays small. A
picture is read and decoded once, where the model is. Files come from strangers: only common formats
are opened, their size is looked at before they are decoded, and no place is outside its folder.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nan_merge.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 64_000_000
"""More pixels are taken for an attack: 64 million are 192 MB decoded."""
MAX_BYTES = 64_000_000


@dataclass(frozen=True)
class PictureSource:
    """Where a picture lies.

    Attributes:
        path: A file: the picture itself, a table with pictures in base64, or a parquet file.
        digest: First 16 hexadecimal digits of the SHA-256 of the picture's bytes.
        span: In a table, first byte and number of bytes of the base64 text.
        cell: In a parquet file, column and row, from 0.
    """

    path: str
    digest: str
    span: tuple[int, int] | None = None
    cell: tuple[str, int] | None = None

    def __str__(self) -> str:
        if self.cell is not None:
            return f"{self.path}: row {self.cell[1] + 1}, {self.cell[0]}"
        return f"{self.path}, byte {self.span[0]}" if self.span is not None else self.path


def picture_digest(content: bytes) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a picture's bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def decode_base64(place: str, text: str | bytes) -> bytes:
    """The bytes that a base64 text stands for.

    Raises:
        DataError: If it is no base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(
            f"{place}: the image is no base64 ({error}). Fetch the file again."
        ) from error


def read_file(place: str, path: Path) -> bytes:
    """The bytes of a picture in a file of its own.

    Raises:
        DataError: If it is missing, unreadable, or too large.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{place}: the image {path} has more than {MAX_BYTES:,} bytes")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{place}: the image {path} is missing") from error
    except OSError as error:
        raise DataError(f"{place}: cannot read the image {path}: {error.strerror}") from error


def inside(folder: Path, place: str, name: str) -> Path:
    """A file that data names, which must lie in the data's folder.

    Raises:
        DataError: If the name leads out of it.
    """
    path = folder / name
    if Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{place}: the image {name!r} is not inside {folder}")
    return path


def read_picture(source: PictureSource) -> bytes:
    """The bytes of a picture, wherever it lies.

    Raises:
        DataError: If they cannot be read, or are others than when the data was opened.
    """
    if source.span is not None:
        start, count = source.span
        with Path(source.path).open("rb") as file:
            file.seek(start)
            content = decode_base64(str(source), file.read(count))
    elif source.cell is not None:
        content = _read_cell(source.path, *source.cell)
    else:
        content = read_file(source.path, Path(source.path))
    if picture_digest(content) != source.digest:
        raise DataError(f"{source}: the image has changed since the data was opened. Run it again.")
    return content


def _read_cell(path: str, column: str, row: int) -> bytes:
    first, cells = _row_group_of(path, column, row)
    return picture_bytes(cells[row - first])


@lru_cache(maxsize=1)
def _row_groups(path: str) -> tuple[Any, tuple[int, ...]]:
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(path)
    sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    return file, tuple(sum(sizes[:number]) for number in range(len(sizes) + 1))


def _row_group_of(path: str, column: str, row: int) -> tuple[int, list[Any]]:
    _, firsts = _row_groups(path)
    number = max(at for at, first in enumerate(firsts[:-1]) if first <= row)
    return firsts[number], _read_row_group(path, column, number)


@lru_cache(maxsize=1)  # samples are asked in about the order of the file
def _read_row_group(path: str, column: str, number: int) -> list[Any]:
    file, _ = _row_groups(path)
    return file.read_row_group(number, columns=[column]).column(column).to_pylist()


def picture_bytes(cell: Any) -> bytes:
    """The bytes in a cell of the hub's type `Image`: they themselves, or `{bytes, path}`."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes):
        raise DataError("the image is not in the file: expected its bytes")
    return content


def open_header(place: str, content: bytes) -> Image:
    """A picture whose size and mode are known and whose pixels are not read yet.

    Raises:
        DataError: If it is of no known format, or too large.
        MissingExtraError: If Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("Images need Pillow: pip install 'nan-merge[language]'") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise DataError(f"{place}: the image is far too large: {error}") from error
    except Exception as error:  # a damaged file fails wherever it likes
        raise DataError(
            f"{place}: the image is damaged, or none of {', '.join(FORMATS)}. Fetch it again."
        ) from error
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{place}: the image has {width:,} x {height:,} pixels, more than {MAX_PIXELS:,}, and "
            "was not decoded"
        )
    return picture


def decode_picture(place: str, content: bytes) -> Image:
    """A picture in RGB; the first frame of an animated one.

    Raises:
        DataError: If it is damaged, cut short, or too large.
    """
    picture = open_header(place, content)
    try:
        return picture.convert("RGB")
    except Exception as error:
        raise DataError(f"{place}: the image is damaged or cut short ({error}).") from error


def is_animated(picture: Image) -> bool:
    """Whether a picture has several frames."""
    return bool(getattr(picture, "is_animated", False))
