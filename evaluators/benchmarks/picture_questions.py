"""What benchmarks of questions about pictures have in common: options, prompts, parts."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

from evaluators.benchmarks.picture_tables import PictureRow
from evaluators.profiles import Judged
from evaluators.samples import Message, Sample
from evaluators.scores import Score, score_weighted
from nan_merge.errors import DataError

LETTERS = string.ascii_uppercase
METRIC = "accuracy"


def listed_texts(text: str, label: str, around: str) -> tuple[str, ...]:
    """The texts behind the labels A, B, ... of a line, as far as these go in their order.

    Args:
        text: Such as "A. 1; B. 2".
        label: Pattern of a label, whose first group is its letter.
        around: Characters that do not belong to a text where they stand at its ends.
    """
    starts = list(re.finditer(label, text))
    found: list[str] = []
    for place, match in enumerate(starts):
        end = starts[place + 1].start() if place + 1 < len(starts) else len(text)
        if match[1] == LETTERS[len(found)]:
            found.append(text[match.end() : end].strip(around))
    return tuple(found)


def options_of(row: PictureRow) -> tuple[str, ...]:
    """The options in the columns A, B, C, ... up to the last that has any text.

    Raises:
        DataError: If there are fewer than two, or one in between is blank.
    """
    texts = [str(row.values.get(letter) or "").strip() for letter in LETTERS]
    while texts and not texts[-1]:
        texts.pop()
    return checked_options(row, texts)


def checked_options(row: PictureRow, texts: Sequence[str]) -> tuple[str, ...]:
    """Options that can be told apart by letters.

    Raises:
        DataError: If there are fewer than two, one is blank, or there are more than letters.
    """
    if not 2 <= len(texts) <= len(LETTERS):
        raise DataError(f"{row.place}: has {len(texts)} options, expected 2 to {len(LETTERS)}")
    if blank := [LETTERS[at] for at, text in enumerate(texts) if not text]:
        raise DataError(f"{row.place}: option {blank[0]} is blank")
    return tuple(texts)


def gold_label(row: PictureRow, options: Sequence[str]) -> str:
    """The letter in the column ``answer``.

    Raises:
        DataError: If it is blank or no option's.
    """
    gold = row.text("answer").strip()
    if gold not in LETTERS[: len(options)]:
        raise DataError(
            f"{row.place}: the answer is {gold!r}, expected a letter from A to "
            f"{LETTERS[len(options) - 1]}"
        )
    return gold


def lines_of(options: Sequence[str], form: str = "{label}. {option}") -> str:
    """The options, one a line."""
    pairs = zip(LETTERS, options, strict=False)
    return "\n".join(form.format(label=label, option=option) for label, option in pairs)


def picture_sample(
    row: PictureRow,
    *,
    benchmark: str,
    identity: str,
    prompt: str,
    gold: str,
    cluster: str | None = None,
    options: Sequence[str] = (),
    answer_format: str = "choice",
    tags: Sequence[str] = (),
) -> Sample:
    """A question in one turn of the user, behind its pictures."""
    return Sample(
        id=f"{benchmark}/{identity}",
        cluster_id=f"{benchmark}/{cluster or identity}",
        subset=benchmark,
        lead=(),
        shots=(),
        question=(Message("user", prompt, len(row.images)),),
        choices=(),
        labels=tuple(LETTERS[: len(options)]),
        gold=gold,
        images=row.images,
        options=tuple(options),
        answer_format=answer_format,
        tags=tuple(tags),
    )


def refuse_repeated(samples: Sequence[Sample], rows: Sequence[PictureRow]) -> list[Sample]:
    """Samples that can be told apart.

    Raises:
        DataError: If two have one id.
    """
    seen: dict[str, str] = {}
    for sample, row in zip(samples, rows, strict=True):
        if sample.id in seen:
            raise DataError(f"{row.place}: id {sample.id!r} is also that of {seen[sample.id]}")
        seen[sample.id] = row.place
    return list(samples)


def by_tag(outcomes: Sequence[Judged]) -> dict[str, Score]:
    """Accuracy on each part of a benchmark; a sample may belong to several."""
    tags = sorted({tag for each in outcomes for tag in each.sample.tags})
    return {tag: share_of(tag, outcomes, _has(tag)) for tag in tags}


def share_of(name: str, outcomes: Sequence[Judged], belongs: Callable[[Sample], bool]) -> Score:
    """Share of right answers among the samples that belong to a part."""
    found = [
        (each.sample.cluster_id, float(each.is_correct))
        for each in outcomes
        if belongs(each.sample)
    ]
    return score_weighted(name, METRIC, [(1.0, found)])


def _has(tag: str) -> Callable[[Sample], bool]:
    return lambda sample: tag in sample.tags
