"""MMLU (Hendrycks et al., arXiv 2009.03300): 57 subjects, 14,042 questions with four options.

Layout of the data: {dev,test}/SUBJECT_{dev,test}.csv without header: question, A, B, C, D, answer.
The first five questions of dev are the solved examples.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evaluators.benchmarks.files import check_subsets
from evaluators.benchmarks.mmlu_subjects import GROUPS, SUBJECTS
from evaluators.benchmarks.questions import (
    LABELS,
    Question,
    between_lines,
    clusters,
    read_questions,
    read_shots,
)
from evaluators.benchmarks.upstreams import MAX_TOKENS, USER_TURN_END, opencompass
from evaluators.extraction import (
    answer_pattern,
    first_option,
    stated_label,
)
from evaluators.profiles import Decoding, Profile
from evaluators.samples import Message, Sample
from evaluators.scorers import CHOICE_SCORERS, written_label

BuildSample = Callable[[str, str, str, Question, list[Question]], Sample]


def question_path(folder: Path, split: str, subject: str) -> Path:
    """Where the questions of a subject lie."""
    return folder / split / f"{subject}_{split}.csv"


def _reader(build: BuildSample, num_shots: int) -> Callable[[Path], list[Sample]]:
    def read(folder: Path) -> list[Sample]:
        splits = ("dev", "test") if num_shots else ("test",)
        check_subsets(
            (question_path(folder, split, each) for split in splits for each in SUBJECTS), "mmlu"
        )
        samples: list[Sample] = []
        for subject in SUBJECTS:
            shots = read_shots(question_path(folder, "dev", subject)) if num_shots else []
            questions = read_questions(question_path(folder, "test", subject))
            places = clusters(subject, [each.with_options() for each in questions])
            for question, cluster in zip(questions, places, strict=True):
                samples.append(build(subject, f"{subject}/{question.id}", cluster, question, shots))
        return samples

    return read


def _by_likelihood(
    subject: str, sample_id: str, cluster: str, question: Question, shots: list[Question]
) -> Sample:
    # Two blanks before the subject and an empty line between examples are upstream's.
    name = subject.replace("_", " ")
    return Sample(
        id=sample_id,
        cluster_id=cluster,
        subset=subject,
        lead=f"The following are multiple choice questions (with answers) about  {name}.\n\n",
        shots=between_lines(f"{each.with_options()}\nAnswer: {each.answer}\n" for each in shots),
        question=f"\n{question.with_options()}\nAnswer:",
        choices=tuple(f" {label}" for label in LABELS),
        labels=LABELS,
        gold=question.answer,
    )


def _in_writing(
    subject: str, sample_id: str, cluster: str, question: Question, shots: list[Question]
) -> Sample:
    name = subject.replace("_", " ")

    def ask(asked: Question) -> Message:
        hint = f"There is a single choice question about {name}."
        hint += " Answer the question by replying A, B, C or D."
        return Message("user", f"{hint}\nQuestion: {asked.with_options()}\nAnswer: ")

    return Sample(
        id=sample_id,
        cluster_id=cluster,
        subset=subject,
        lead=(),
        shots=tuple((ask(each), Message("assistant", f"{each.answer}\n")) for each in shots),
        question=(ask(question),),
        choices=(),
        labels=LABELS,
        gold=question.answer,
    )


def _step_by_step(
    subject: str, sample_id: str, cluster: str, question: Question, shots: list[Question]
) -> Sample:
    task = (
        "Answer the following multiple choice question. The last line of your response should be "
        "of the following format: 'ANSWER: $LETTER' (without quotes) where LETTER is one of ABCD. "
        "Think step by step before answering."
    )
    options = "\n".join(f"{a}) {b}" for a, b in zip(LABELS, question.options, strict=True))
    return Sample(
        id=sample_id,
        cluster_id=cluster,
        subset=subject,
        lead=(),
        shots=(),
        question=(Message("user", f"{task}\n\n{question.text}\n\n{options}"),),
        choices=(),
        labels=LABELS,
        gold=question.answer,
    )


_CONFIGS = "opencompass/configs/datasets/mmlu"

PROFILES = (
    Profile(
        benchmark="mmlu",
        name="oc-ppl",
        upstream=opencompass(f"{_CONFIGS}/mmlu_ppl_ac766d.py"),
        samples=_reader(_by_likelihood, 5),
        decoding=None,
        uses_chat_template=False,
        scorers=CHOICE_SCORERS,
        subsets=SUBJECTS,
        groups=GROUPS,
    ),
    Profile(
        benchmark="mmlu",
        name="oc-gen-5shot",
        upstream=opencompass(f"{_CONFIGS}/mmlu_gen_4d595a.py"),
        samples=_reader(_in_writing, 5),
        decoding=Decoding(MAX_TOKENS),
        uses_chat_template=True,
        user_turn_end=USER_TURN_END,
        scorers={"compat": written_label(first_option), "strict": written_label(stated_label)},
        subsets=SUBJECTS,
        groups=GROUPS,
    ),
    Profile(
        benchmark="mmlu",
        name="oc-gen-0shot",
        upstream=opencompass(f"{_CONFIGS}/mmlu_openai_simple_evals_gen_b618ea.py"),
        samples=_reader(_step_by_step, 0),
        decoding=Decoding(MAX_TOKENS),
        uses_chat_template=True,
        user_turn_end=USER_TURN_END,
        scorers={"compat": written_label(answer_pattern), "strict": written_label(stated_label)},
        subsets=SUBJECTS,
        groups=GROUPS,
    ),
)
