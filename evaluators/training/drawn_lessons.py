"""What a miniature LLaVA is taught: fresh pictures, asked about in the words of four benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from evaluators.benchmarks import PROFILES
from evaluators.profiles import Profile
from evaluators.rendering import prompt_text, wording_of
from evaluators.samples import Message, Sample
from evaluators.training.causal import IGNORED
from evaluators.training.drawn_questions import (
    OPTIONS,
    QUESTIONS,
    SIZE,
    Skill,
    draw_scene,
    write_drawn_benchmarks,
)

ASKED = (("mathvista", "mathvista-offline-v1"), ("wemath", "wemath"), ("ai2d", "llava"),
         ("geoqa", "gllava-compat"))  # fmt: skip
"""Benchmarks and the profiles by which they are asked."""


@dataclass(frozen=True)
class Question:
    """One way to ask for a skill; of every picture it is asked in the same words.

    Attributes:
        skill: What it asks for.
        sample: The question, as a profile asks it.
        profile: Whose words it has.
        answers: The right answer to write, for each option of the skill.
    """

    skill: Skill
    sample: Sample
    profile: Profile
    answers: tuple[str, ...]

    @property
    def text(self) -> str:
        """What is asked."""
        return _message(self.sample).content


@dataclass(frozen=True)
class Batch:
    """Questions with answers: ids and labels int64 (batch, length), pixels (batch, 3, SIZE, SIZE).

    The labels are the ids of the answers; those of prompts and padding are ignored.
    """

    ids: Tensor
    labels: Tensor
    pixels: Tensor


def drawn_questions(skills: Sequence[Skill]) -> list[Question]:
    """Every way in which the benchmarks' profiles ask for some skills."""
    found: list[Question] = []
    with TemporaryDirectory(prefix="nan-merge-drawn-") as folder:
        write_drawn_benchmarks(Path(folder), 2, seed=0)
        for name in ASKED:
            profile = PROFILES[name]
            by_skill: dict[Skill, Sample] = {}
            for sample in profile.samples(Path(folder) / profile.benchmark):
                by_skill[skill_of(sample)] = sample
            found += [
                Question(skill, by_skill[skill], profile, _answers(profile, by_skill[skill], skill))
                for skill in skills
                if skill in by_skill
            ]
    return found


def skill_of(sample: Sample) -> Skill:
    """What a drawn question asks for.

    Raises:
        ValueError: If it is none.
    """
    text = _message(sample).content
    for skill, words in QUESTIONS.items():
        if words in text:
            return skill
    raise ValueError(f"{sample.id} asks for no drawn skill")


def draw_batches(
    processor: Any, questions: Sequence[Question], batch_size: int, random: np.random.Generator
) -> Iterator[Batch]:
    """Yield for ever: pictures that no batch before had, each with a question drawn at random.

    Args:
        processor: The model's.
        questions: To draw from.
        batch_size: Pictures in a batch.
        random: Of pictures and questions.
    """
    prompts = [_prompt_ids(processor, each) for each in questions]
    answers = [[_answer_ids(processor, text) for text in each.answers] for each in questions]
    while True:
        ids: list[Tensor] = []
        labels: list[Tensor] = []
        pictures: list[Any] = []
        for place in random.integers(len(questions), size=batch_size):
            scene = draw_scene(random)
            answer = answers[place][scene.right[questions[place].skill]]
            ids.append(torch.cat([prompts[place], answer]))
            labels.append(torch.cat([torch.full_like(prompts[place], IGNORED), answer]))
            pictures.append(scene.pixels)
        # Padding stands behind every token that counts, where a causal model sees none of it.
        yield Batch(
            pad_sequence(ids, batch_first=True),
            pad_sequence(labels, batch_first=True, padding_value=IGNORED),
            processor.image_processor(pictures, return_tensors="pt")["pixel_values"],
        )


def _message(sample: Sample) -> Message:
    (message,) = sample.question
    if not isinstance(message, Message):
        raise TypeError(f"{sample.id}: its question is no message")
    return message


def _answers(profile: Profile, sample: Sample, skill: Skill) -> tuple[str, ...]:
    """The right answer for each option, in words that the profile's scorers understand."""
    form = {
        "mathvista": " The answer is {}",
        "wemath": " <Answer>: <<{}>>",
        "ai2d": " {}",
        "geoqa": " Therefore, the answer is {}.",
    }[profile.benchmark]
    said = sample.labels or OPTIONS[skill]  # without options the number itself
    return tuple(form.format(each) for each in said)


def _prompt_ids(processor: Any, question: Question) -> Tensor:
    text = prompt_text(processor.tokenizer, question.sample, wording_of(question.profile, True), 0)
    blank = np.zeros((SIZE, SIZE, 3), np.uint8)  # its tokens are as many as any picture's
    inputs = processor(text=[text], images=[blank], add_special_tokens=False, return_tensors="pt")
    return inputs["input_ids"][0]


def _answer_ids(processor: Any, text: str) -> Tensor:
    """An answer and the end of sequence, so that the model learns to stop."""
    tokenizer = processor.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return torch.tensor([*ids, tokenizer.eos_token_id])
