"""What a language benchmark asks: pieces of a prompt, and the sample that they make up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evaluators.pictures import PictureSource

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a chat.

    Attributes:
        role: Who speaks.
        content: What is said.
        num_images: How many of the sample's images come before it.
    """

    role: Role
    content: str
    num_images: int = 0


# Text is put together as it stands; messages go through a chat template, or are joined as the
# profile's upstream joins them where there is none.
Piece = str | tuple[Message, ...]


@dataclass(frozen=True)
class Sample:
    """One question, as a profile asks it.

    Attributes:
        id: Stable, unique within the benchmark, e.g. "anatomy/17".
        cluster_id: Samples that share a source (a problem, a passage) share it.
        subset: Part of the benchmark that is averaged on its own, e.g. "anatomy".
        lead: What comes first, e.g. a hint; may be empty.
        shots: Solved examples, in order. Where the context is too short, they are left out from
            the end.
        question: What is asked.
        choices: Continuations of the prompt whose likelihood is compared; empty if the model
            writes its answer.
        labels: Of each choice, what it means as an answer ("A"); of a written answer, the labels
            that it may have, if there is a list of them.
        gold: The right answer, as the data has it.
        images: What the model is shown, in the order in which messages show them.
        options: The texts that labels stand for, where the answer may be one of them.
        answer_format: What kind of answer is asked for, where a benchmark has several.
        tags: Parts of the benchmark that the sample belongs to, "task: geometry".
    """

    id: str
    cluster_id: str
    subset: str
    lead: Piece
    shots: tuple[Piece, ...]
    question: Piece
    choices: tuple[str, ...]
    labels: tuple[str, ...]
    gold: str
    images: tuple[PictureSource, ...] = ()
    options: tuple[str, ...] = ()
    answer_format: str = ""
    tags: tuple[str, ...] = ()
