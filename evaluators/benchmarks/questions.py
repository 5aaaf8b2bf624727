"""Multiple-choice questions with four options: what MMLU and C-Eval have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluators.benchmarks.files import Row, read_csv
from nan_merge.errors import DataError

LABELS = ("A", "B", "C", "D")
NUM_SHOTS = 5


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: Of the question within its file; the row's number, from 0, if the file has none.
        text: What is asked.
        options: Four of them.
        answer: The right one's label.
    """

    id: str
    text: str
    options: tuple[str, ...]
    answer: str

    def with_options(self, form: str = "{label}. {option}") -> str:
        """The question and its options, one a line."""
        lines = [self.text]
        for label, option in zip(LABELS, self.options, strict=True):
            lines.append(form.format(label=label, option=option))
        return "\n".join(lines)


def read_questions(path: Path, header: Sequence[str] | None = None) -> list[Question]:
    """Read a CSV file of questions.

    Args:
        path: The file.
        header: None if there is no header: question, four options, answer. Else the names of the
            columns: id, question, four options, answer.

    Raises:
        DataError: If the file is missing or damaged, has another number of columns, an id twice,
            or a blank or unknown answer.
    """
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for number, row in enumerate(read_csv(path, header)):
        question = _to_question(row, str(number) if header is None else None)
        if question.id in seen:
            raise DataError(f"{row.place}: id {question.id!r} is also that of {seen[question.id]}")
        seen[question.id] = row.place
        questions.append(question)
    return questions


def read_shots(path: Path, header: Sequence[str] | None = None) -> list[Question]:
    """Read the five solved examples of a subject; raises as `read_questions`."""
    shots = read_questions(path, header)
    if len(shots) < NUM_SHOTS:
        raise DataError(f"{path}: has {len(shots)} examples, expected {NUM_SHOTS}")
    return shots[:NUM_SHOTS]


def between_lines(shots: Iterable[str]) -> tuple[str, ...]:
    """Solved examples with a line end between them; the question then begins with one.

    So any number of them gives what OpenCompass gives (icl_base_retriever.py), none included.
    """
    return tuple(f"\n{shot}" if number else shot for number, shot in enumerate(shots))


def clusters(subset: str, texts: Sequence[str]) -> list[str]:
    """Of each question of a subset, the cluster: that of the first one with the same text.

    Some questions are there twice: 27 of MMLU's 14,042.
    """
    first: dict[str, int] = {}
    return [f"{subset}/{first.setdefault(text, number)}" for number, text in enumerate(texts)]


def _to_question(row: Row, number: str | None) -> Question:
    cells = row.cells if number is None else (number, *row.cells)
    if len(cells) != 7:
        raise DataError(
            f"{row.place}: has {len(row.cells)} columns, expected 6: question, A, B, C, D, answer"
        )
    identity, text, *options, answer = cells
    if not text.strip():
        raise DataError(f"{row.place}: the question is blank")
    if not answer.strip():
        raise DataError(f"{row.place}: the answer is blank; the question cannot be scored")
    if answer not in LABELS:
        raise DataError(f"{row.place}: the answer is {answer!r}, expected A, B, C or D")
    return Question(identity, text, tuple(options), answer)
