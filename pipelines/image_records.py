"""Beside a model's answers to images, what made them: what a comparison must find equal."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nan_merge.errors import DataError
from nan_merge.publish import write_text_atomically

SUFFIX = ".about.json"


@dataclass(frozen=True)
class ImageRecordInfo:
    """What made a record of predictions of images.

    Attributes:
        key: The record's, as its first line has it.
        model: The model's name.
        benchmark: The benchmark's name.
        data: Digest of the images, the labels and the class names.
        heads: Digest of the zero-shot heads.
        engine: Versions, and what else moves the last bits of sums.
    """

    key: str
    model: str
    benchmark: str
    data: str
    heads: str
    engine: dict[str, Any]


def info_path(record: Path) -> Path:
    """Where the description of a record lies."""
    return record.with_suffix(SUFFIX)


def write_image_info(record: Path, info: ImageRecordInfo) -> None:
    """Write the description of a record, unless it is there."""
    text = json.dumps(asdict(info), indent=1, ensure_ascii=False) + "\n"
    path = info_path(record)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text_atomically(path, text)


def read_image_info(record: Path) -> ImageRecordInfo:
    """Read what `write_image_info` wrote.

    Raises:
        DataError: If it is missing or damaged.
    """
    path = info_path(record)
    try:
        return ImageRecordInfo(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing, which says what {record.name} answers: an older version made it. "
            "Run the same command again; nothing is computed twice."
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({error}). Remove it and run the same command again; nothing is "
            "computed twice."
        ) from error
