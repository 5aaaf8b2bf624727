"""MathVista testmini (Lu et al., arXiv 2310.02255): 1,000 questions about figures.

Layouts of the data: ``testmini.json`` and ``images/``; the hub's ``testmini-*.parquet``;
VLMEvalKit's ``MathVista_MINI.tsv``. 540 questions have 2 to 8 options, 460 ask for an integer, a
number with one or two decimal places, or a list.

Its authors extract answers with a judge model and take the option whose text is nearest, so that
nothing ever abstains. The profile here does neither.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluators.answers import Answer
from evaluators.benchmarks.picture_questions import (
    LETTERS,
    by_tag,
    checked_options,
    lines_of,
    picture_sample,
    refuse_repeated,
)
from evaluators.benchmarks.picture_tables import OnPicture, PictureRow, find_file, read_picture_rows
from evaluators.benchmarks.upstreams import mathvista
from evaluators.extraction_pictures import chosen_label, stated_list, stated_value
from evaluators.pictures import open_header
from evaluators.profiles import Decoding, Profile, Verdict
from evaluators.samples import Sample
from nan_merge.errors import DataError

BENCHMARK = "mathvista"
FILES = ("testmini.json", "testmini-*.parquet", "MathVista_MINI.tsv")
NUM_SAMPLES = 1_000
_HINTS = {
    "choice": "provide the correct option letter, e.g., A, B, C, D, at the end.",
    "integer": "requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the "
    "end.",
    "float:1": "requiring a floating-point number with one decimal place and provide the final "
    "value, e.g., 1.2, 1.3, 1.4, at the end.",
    "float:2": "requiring a floating-point number with two decimal places and provide the final "
    "value, e.g., 1.23, 1.34, 1.45, at the end.",
    "list": "requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], "
    "[1.2, 1.3, 1.4], at the end.",
}


def read_rows(folder: Path, check: OnPicture = open_header) -> list[PictureRow]:
    """The questions of a data folder in one of its layouts.

    Args:
        folder: Of the data.
        check: Called with the place and the bytes of every picture.

    Raises:
        DataError: If there is none, or something in it is damaged.
    """
    paths = find_file(folder, FILES, BENCHMARK)
    column = "decoded_image" if paths[0].suffix == ".parquet" else "image"
    return read_picture_rows(paths, column, check)


def read_samples(folder: Path) -> list[Sample]:
    """Ask the questions as the authors do (evaluation/build_query.py, `solution`, 0-shot).

    Raises:
        DataError: As `read_rows`; if an answer is blank or no option, or an id is there twice.
    """
    rows = read_rows(folder)
    return refuse_repeated([_sample(row) for row in rows], rows)


def prompt_of(question: str, unit: str, options: Sequence[str], answer_format: str) -> str:
    """The authors' question in the form `solution`."""
    asked = f"Question: {question}" + (f" (Unit: {unit})" if unit else "")
    choices = f"Choices:\n{lines_of(options, '({label}) {option}')}" if options else ""
    joint = " and " if answer_format == "choice" else " "
    hint = f"Hint: Please answer the question{joint}{_HINTS[answer_format]}"
    return "\n".join(part for part in (asked, choices, hint, "Solution:") if part)


def offline_verdict(sample: Sample, answer: Answer) -> Verdict:
    """The verdict without a judge: a label, a number or a list that the answer states, or none."""
    text = answer.completion
    if sample.answer_format == "choice":
        label = chosen_label(text, sample.labels, sample.options)
        found = sample.options[sample.labels.index(label)] if label is not None else None
    elif sample.answer_format == "list":
        found = stated_list(text)
    else:
        found = stated_value(text, sample.answer_format)
    return Verdict(found, found is not None and found == sample.gold)


def _sample(row: PictureRow) -> Sample:
    options = _options(row)
    answer_format = _answer_format(row, bool(options))
    gold = _gold(row, answer_format)
    if options and gold not in options:
        if gold not in LETTERS[: len(options)]:
            raise DataError(f"{row.place}: the answer {gold!r} is none of the options")
        gold = options[LETTERS.index(gold)]
    unit = str(row.values.get("unit") or "")
    return picture_sample(
        row,
        benchmark=BENCHMARK,
        identity=row.text("pid", row.text("index", "")) or row.place.rpartition(" ")[2],
        prompt=prompt_of(_question(row), unit, options, answer_format),
        gold=gold,
        options=options,
        answer_format=answer_format,
        tags=_tags(row),
    )


def _question(row: PictureRow) -> str:
    """The question alone: VLMEvalKit's table holds hint and options in the same column."""
    text = row.text("question")
    if text.startswith("Hint:") and "\nQuestion:" in text:
        text = text.partition("\nQuestion:")[2].partition("\nChoices:")[0]
        unit = f"(Unit: {row.values.get('unit') or ''})"
        text = text.strip().removesuffix(unit)
    return text.strip()


def _literal(row: PictureRow, key: str) -> Any:
    """A value that a table may hold as Python or JSON prints it."""
    value = row.values.get(key)
    if not isinstance(value, str) or not value.strip():
        return value or None
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(f"{row.place}: {key} cannot be read: {value[:60]!r}") from error


def _options(row: PictureRow) -> tuple[str, ...]:
    choices = _literal(row, "choices")
    if choices is None:
        return ()
    if not isinstance(choices, list):
        raise DataError(f"{row.place}: choices is {choices!r}, expected a list")
    return checked_options(row, [str(choice).strip() for choice in choices])


def _answer_format(row: PictureRow, has_options: bool) -> str:
    kind = row.text("answer_type", "text")
    if has_options:
        return "choice"
    if kind == "float":
        precision = str(row.values.get("precision") or "").removesuffix(".0")
        kind = f"float:{precision}"
    if kind not in _HINTS:
        raise DataError(
            f"{row.place}: answer_type {kind!r} is none of integer, float with precision 1 or 2, "
            "list, or text with choices"
        )
    return kind


def _gold(row: PictureRow, answer_format: str) -> str:
    gold = row.text("answer").strip()
    if answer_format.startswith("float"):
        try:
            return str(round(float(gold), int(answer_format[-1])))
        except ValueError as error:
            raise DataError(f"{row.place}: the answer {gold!r} is no number") from error
    return gold


def _tags(row: PictureRow) -> list[str]:
    metadata = _literal(row, "metadata") if "metadata" in row.values else row.values
    metadata = metadata if isinstance(metadata, dict) else dict(row.values)
    skills = metadata.get("skills")
    if isinstance(skills, str):
        skills = [skill.strip(" '\"") for skill in skills.strip("[]").split(",") if skill.strip()]
    tags = [f"task: {metadata['task']}"] if metadata.get("task") else []
    tags += [f"skill: {skill}" for skill in skills or ()]
    return [*tags, f"type: {'choice' if row.values.get('choices') else 'free form'}"]


PROFILES = (
    Profile(
        benchmark=BENCHMARK,
        name="mathvista-offline-v1",
        upstream=mathvista("evaluation/build_query.py"),
        samples=read_samples,
        decoding=Decoding(1024),
        uses_chat_template=True,
        scorers={"strict": offline_verdict},
        subsets=(BENCHMARK,),
        measures=by_tag,
    ),
)
