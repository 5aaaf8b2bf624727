"""C-Eval (Huang et al., arXiv 2305.08322): 52 Chinese subjects, questions with four options.

Layout of the data: {dev,val,test}/SUBJECT_{dev,val,test}.csv with a header that names id,
question, A, B, C, D and answer. The first five questions of dev are the solved examples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evaluators.benchmarks.ceval_subjects import CHINESE_NAMES, GROUPS, SUBJECTS
from evaluators.benchmarks.files import check_subsets, read_csv
from evaluators.benchmarks.questions import (
    LABELS,
    Question,
    between_lines,
    clusters,
    read_questions,
    read_shots,
)
from evaluators.benchmarks.upstreams import MAX_TOKENS, USER_TURN_END, opencompass
from evaluators.extraction import first_capital, stated_label
from evaluators.profiles import Decoding, Profile
from evaluators.samples import Message, Piece, Sample
from evaluators.scorers import CHOICE_SCORERS, written_label
from nan_merge.errors import DataError

COLUMNS = ("id", "question", *LABELS, "answer")


def question_path(folder: Path, split: str, subject: str) -> Path:
    """Where the questions of a subject lie."""
    return folder / split / f"{subject}_{split}.csv"


def refuse_blank_answers(path: Path) -> None:
    """See that a file of questions has answers.

    Raises:
        DataError: If it has no column of answers, or all of them are blank.
    """
    header, *rows = read_csv(path)
    place = header.cells.index("answer") if "answer" in header.cells else None
    if place is None or not any(row.cells[place].strip() for row in rows):
        raise DataError(
            f"{path}: the answers are blank. C-Eval withheld those of its test split until July "
            "2025, and most copies still lack them: every model would score 0. Evaluate the val "
            "split (benchmark ceval), or fetch the data with its answers."
        )


@dataclass(frozen=True)
class _Form:
    """How a profile asks: by the Chinese name of the subject, and the question."""

    lead: Callable[[str], Piece]
    show: Callable[[str, list[Question]], tuple[Piece, ...]]
    ask: Callable[[str, Question], Piece]
    choices: tuple[str, ...]


def _reader(split: str, form: _Form) -> Callable[[Path], list[Sample]]:
    def read(folder: Path) -> list[Sample]:
        splits = ("dev", split)
        check_subsets(
            (question_path(folder, each, subject) for each in splits for subject in SUBJECTS),
            "ceval",
        )
        return [each for subject in SUBJECTS for each in _subject(folder, split, subject, form)]

    return read


def _subject(folder: Path, split: str, subject: str, form: _Form) -> list[Sample]:
    path, name = question_path(folder, split, subject), CHINESE_NAMES[subject]
    refuse_blank_answers(path)
    questions = read_questions(path, COLUMNS)
    shots = read_shots(question_path(folder, "dev", subject), COLUMNS)
    places = clusters(subject, [each.with_options() for each in questions])
    return [
        Sample(
            id=f"{subject}/{question.id}",
            cluster_id=cluster,
            subset=subject,
            lead=form.lead(name),
            shots=form.show(name, shots),
            question=form.ask(name, question),
            choices=form.choices,
            labels=LABELS,
            gold=question.answer,
        )
        for question, cluster in zip(questions, places, strict=True)
    ]


def _exam(name: str, question: Question) -> str:
    hint = f"以下是中国关于{name}考试的单项选择题，请选出其中的正确答案。"
    return f"{hint}\n{question.with_options()}\n答案: "


def _ask_in_chat(name: str, question: Question) -> Piece:
    return (Message("user", _exam(name, question)),)


def _show_in_chat(name: str, shots: list[Question]) -> tuple[Piece, ...]:
    return tuple(
        (Message("user", _exam(name, each)), Message("assistant", each.answer)) for each in shots
    )


# Where no chat template is applied, upstream's turns become lines, and more line ends that its
# retriever puts between examples.
def _ask_in_text(name: str, question: Question) -> Piece:
    return f"\n\n{_exam(name, question)}\n"


def _show_in_text(name: str, shots: list[Question]) -> tuple[Piece, ...]:
    return tuple(f"{_exam(name, each)}\n{each.answer}\n\n\n" for each in shots)


def _base_lead(name: str) -> Piece:
    return f"以下是关于{name}的单项选择题，请直接给出正确答案的选项。\n"


def _ask_base(name: str, question: Question) -> Piece:
    return f"\n{question.with_options()}\n答案:"


def _show_base(name: str, shots: list[Question]) -> tuple[Piece, ...]:
    return between_lines(f"{each.with_options()}\n答案: {each.answer}\n" for each in shots)


def _profiles(benchmark: str, split: str) -> tuple[Profile, ...]:
    configs = "opencompass/configs/datasets/ceval"
    groups = {f"{benchmark}-{name}": subjects for name, subjects in GROUPS.items()}
    return (
        Profile(
            benchmark=benchmark,
            name="oc-gen",
            upstream=opencompass(f"{configs}/ceval_gen_5f30c7.py"),
            samples=_reader(split, _GEN),
            decoding=Decoding(MAX_TOKENS),
            uses_chat_template=True,
            user_turn_end=USER_TURN_END,
            scorers={"compat": written_label(first_capital), "strict": written_label(stated_label)},
            subsets=SUBJECTS,
            groups=groups,
        ),
        Profile(
            benchmark=benchmark,
            name="oc-ppl",
            upstream=opencompass(f"{configs}/ceval_ppl_578f8d.py"),
            samples=_reader(split, _PPL),
            decoding=None,
            uses_chat_template=False,
            scorers=CHOICE_SCORERS,
            subsets=SUBJECTS,
            groups=groups,
        ),
        Profile(
            benchmark=benchmark,
            name="oc-ppl-base",
            upstream=opencompass(f"{configs}/ceval_ppl_1cd8bf.py"),
            samples=_reader(split, _PPL_BASE),
            decoding=None,
            uses_chat_template=False,
            scorers=CHOICE_SCORERS,
            subsets=SUBJECTS,
            groups=groups,
        ),
    )


_GEN = _Form(lambda name: (), _show_in_chat, _ask_in_chat, choices=())
_PPL = _Form(lambda name: "", _show_in_text, _ask_in_text, choices=LABELS)
_PPL_BASE = _Form(_base_lead, _show_base, _ask_base, choices=tuple(f" {each}" for each in LABELS))

PROFILES = (*_profiles("ceval", "val"), *_profiles("ceval-test", "test"))
