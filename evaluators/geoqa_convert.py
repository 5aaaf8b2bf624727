"""GeoQA's own files as a table: pickles are read as data and never run.

A problem there is a table with an image (an array of grey levels), its Chinese text (``subject``,
or ``token_list`` with ``N_0`` for the first of ``numbers``), four choices (``choices``, or
``choice_nums``), and the place of the right one (``label``): utils.py of chen-judge/GeoQA at
9f73e8f.
"""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.benchmarks.geoqa import TABLE
from evaluators.benchmarks.picture_questions import LETTERS
from evaluators.pickled_data import read_pickled_data
from evaluators.pictures import MAX_PIXELS
from nan_merge.errors import DataError, MissingExtraError
from nan_merge.publish import explain_write_errors, write_text_atomically

COLUMNS = ("index", "image", "question", "A", "B", "C", "D", "answer", "value")


def convert_geoqa(source: Path, folder: Path) -> Path:
    """Write ``geoqa_test.tsv`` of a split of GeoQA's authors, such as ``test.pk``.

    Args:
        source: Their pickle.
        folder: Where the table goes; one that is there is not written over.

    Raises:
        DataError: If the pickle holds anything but plain data, or no problems of GeoQA.
        OutputError: If the table is there or cannot be written.
    """
    problems = read_pickled_data(source)
    if not isinstance(problems, list) or not problems:
        raise DataError(f"{source}: holds no list of problems")
    rows = [_row(f"{source}: problem {number}", each) for number, each in enumerate(problems)]
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerows([COLUMNS, *rows])
    target = folder / TABLE
    with explain_write_errors(target):
        if target.exists():
            raise FileExistsError(17, "it is there already; remove it or choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomically(target, text.getvalue())
    return target


def _row(place: str, problem: Any) -> list[str]:
    if not isinstance(problem, dict):
        raise DataError(f"{place}: is a {type(problem).__name__}, expected a table of fields")
    options = _options(place, problem)
    label = problem.get("label")
    if not isinstance(label, int) or not 0 <= label < len(options):
        raise DataError(f"{place}: label is {label!r}, expected a place from 0 to 3")
    image = base64.b64encode(_png(place, problem.get("image"))).decode()
    question = _question(place, problem)
    return [
        str(problem.get("id", place.rpartition(" ")[2])), image, question, *options,
        LETTERS[label], options[label],
    ]  # fmt: skip


def _question(place: str, problem: Mapping[str, Any]) -> str:
    subject = problem.get("subject")
    if isinstance(subject, str) and subject.strip():
        return subject.strip()
    tokens, numbers = problem.get("token_list"), problem.get("numbers") or []
    if not isinstance(tokens, list) or not tokens:
        raise DataError(f"{place}: has neither subject nor token_list")

    def number(match: re.Match[str]) -> str:
        at = int(match[1])
        return _plain_number(numbers[at]) if at < len(numbers) else match[0]

    return re.sub(r"N_(\d+)", number, "".join(map(str, tokens)))


def _options(place: str, problem: Mapping[str, Any]) -> list[str]:
    choices: Sequence[Any] = problem.get("choices") or problem.get("choice_nums") or []
    if len(choices) != 4:
        raise DataError(f"{place}: has {len(choices)} choices, expected 4")
    return [_plain_number(choice) for choice in choices]


def _plain_number(value: Any) -> str:
    """A number without the fraction that a whole one has not."""
    return f"{value:g}" if isinstance(value, float) else str(value).strip()


def _png(place: str, image: Any) -> bytes:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("Images need Pillow: pip install 'nan-merge[language]'") from error
    fits = isinstance(image, np.ndarray) and image.dtype == np.uint8 and (
        image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    )  # fmt: skip
    if not fits or not 0 < image.size <= MAX_PIXELS:
        raise DataError(f"{place}: its image is no array of grey levels or colours from 0 to 255")
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()
