"""GeoQA (Chen et al., arXiv 2105.14517), test: 754 problems of geometry, four options.

Layouts of the data: ``geoqa_test.tsv`` (index, image, question, A to D, answer), which
``nan-merge data convert-geoqa`` makes of the authors' files; and that of G-LLaVA,
``test_questions.jsonl`` with ``test_answers.jsonl`` and the images, whose questions hold their
choices. Where G-LLaVA's test set comes from is disputed (G-LLaVA issue 19).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from evaluators.benchmarks.files import read_json_lines
from evaluators.benchmarks.picture_questions import (
    gold_label,
    lines_of,
    listed_texts,
    options_of,
    picture_sample,
    refuse_repeated,
)
from evaluators.benchmarks.picture_tables import OnPicture, PictureRow, find_file, read_picture_rows
from evaluators.benchmarks.upstreams import gllava
from evaluators.extraction_pictures import chosen_label, gllava_option
from evaluators.pictures import open_header
from evaluators.profiles import Decoding, Profile, Scorer, ScorerName
from evaluators.samples import Sample
from evaluators.scorers import chosen_option
from nan_merge.errors import DataError

BENCHMARK = "geoqa"
TABLE, QUESTIONS, ANSWERS = "geoqa_test.tsv", "test_questions.jsonl", "test_answers.jsonl"
NUM_SAMPLES = 754
_ENDING = (
    "You should answer the question using one of the four choices. You should end your answer by "
    '"Therefore, the answer is [OPTION]"'
)


def read_rows(folder: Path, check: OnPicture = open_header) -> list[PictureRow]:
    """The questions of a data folder in one of its layouts, each with its letter as ``answer``.

    Args:
        folder: Of the data.
        check: Called with the place and the bytes of every picture.

    Raises:
        DataError: If there is none, or something in it is damaged; if a question has no answer.
    """
    (path, *_) = find_file(folder, (TABLE, QUESTIONS), BENCHMARK)
    rows = read_picture_rows([path], "image", check)
    if path.name == TABLE:
        return rows
    return _with_answers(path, rows)


def _with_answers(path: Path, rows: Sequence[PictureRow]) -> list[PictureRow]:
    answers = {
        str(record.get("question_id")): str(record.get("text") or "")
        for _, record in read_json_lines(path.with_name(ANSWERS))
    }
    found: list[PictureRow] = []
    for row in rows:
        identity = row.text("question_id")
        if identity not in answers:
            raise DataError(f"{row.place}: question {identity} has no answer in {ANSWERS}")
        values = {**row.values, "index": identity, "answer": answers[identity]}
        found.append(PictureRow(row.place, values, row.images))
    return found


def read_samples(folder: Path, form: str = "gllava") -> list[Sample]:
    """Ask the questions as plain LLaVA is asked by G-LLaVA, or for the letter alone.

    Raises:
        DataError: As `read_rows`; if an answer is blank or no option, or an id is there twice.
    """
    rows = read_rows(folder)
    return refuse_repeated([_sample(row, number, form) for number, row in enumerate(rows)], rows)


def parse_choices(text: str) -> tuple[str, ...]:
    """The choices in a question of G-LLaVA, "... Choices: A. 20 B: 30 (C) 40 D. 50".

    >>> parse_choices("Find x. Choices: A. 20° B. 30° C. 40° D. 50°")
    ('20°', '30°', '40°', '50°')
    """
    tail = re.split(r"(?i)choices?\s*[:：]", text)[-1]
    return listed_texts(tail, r"(?:^|[\s,;])\(?([A-D])[.:：)]", " ,;\n")


def _sample(row: PictureRow, number: int, form: str) -> Sample:
    if "text" in row.values:
        text = row.text("text").replace("<image>", "").strip()
        options = parse_choices(text)
        options = options if len(options) == 4 else ("",) * 4
    else:
        options = options_of(row)
        text = f"{row.text('question')}\nChoices:\n{lines_of(options)}"
    direct = "Answer with the option's letter from the given choices directly."
    return picture_sample(
        row,
        benchmark=BENCHMARK,
        identity=row.text("index", str(number)),
        prompt=f"{text}\n{_ENDING if form == 'gllava' else direct}",
        gold=gold_label(row, options),
        options=options,
    )


_SCORERS: dict[ScorerName, Scorer] = {
    "compat": chosen_option(gllava_option),
    "strict": chosen_option(chosen_label),
}


def _profile(name: str, form: str, max_tokens: int, scorers: dict[ScorerName, Scorer]) -> Profile:
    return Profile(
        benchmark=BENCHMARK,
        name=name,
        upstream=gllava("scripts/geo_acc_calculate.py"),
        samples=lambda folder: read_samples(folder, form),
        decoding=Decoding(max_tokens),
        uses_chat_template=True,
        scorers=scorers,
        subsets=(BENCHMARK,),
    )


PROFILES = (
    _profile("gllava-compat", "gllava", 1024, _SCORERS),
    _profile("mcq-letter", "letter", 512, {"strict": _SCORERS["strict"]}),
)
