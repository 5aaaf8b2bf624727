"""Exercises to fine-tune small language models on: made here, as many as anyone wants.

Both kinds have the form in which the benchmarks' profiles ask, so that what is learned shows:
word problems in the form of the Wizard models' template (Qwen2.5-Math, ``evaluation/utils.py``,
``wizard_zs``), counting in that of BIG-Bench-Hard's chains of thought. No question of a benchmark
is among them; all are drawn from the words and patterns below.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

ExerciseKind = Literal["word_problems", "counting"]

NAMES = (
    "Amir", "Beate", "Chen", "Dora", "Emeka", "Freya", "Goran", "Hana", "Ivo", "Jaya", "Kofi",
    "Lena", "Mateo", "Nadia", "Oskar", "Priya",
)  # fmt: skip
THINGS = ("apples", "pens", "stickers", "marbles", "books", "eggs", "coins", "shells", "tickets")
COUNTED = {
    "fruits": ("apple", "banana", "plum", "pear", "grape", "orange", "lemon", "nectarine"),
    "musical instruments": ("violin", "piano", "flute", "trumpet", "drum", "clarinet", "accordion"),
    "animals": ("cat", "dog", "goat", "rabbit", "snail", "duck", "hen", "frog", "donkey"),
    "vegetables": ("carrot", "onion", "cabbage", "leek", "turnip", "yam", "cauliflower"),
}
NUMBER_WORDS = ("", "a", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Exercise:
    """A prompt and what should be written after it.

    Attributes:
        prompt: What is given.
        answer: What the model learns to write, up to its end of sequence.
    """

    prompt: str
    answer: str


def make_exercises(kind: ExerciseKind, number: int, seed: int) -> list[Exercise]:
    """So many exercises; the same seed gives the same ones."""
    draw = random.Random(f"{kind} {seed}")
    return [_KINDS[kind](draw) for _ in range(number)]


def _word_problem(draw: random.Random) -> Exercise:
    question, steps, result = draw.choice((_bought, _shared, _saved))(draw)
    return Exercise(
        f"### Instruction:\n{question}\n\n### Response: Let's think step by step.",
        f" {' '.join(steps)} The answer is {result}.",
    )


def _bought(draw: random.Random) -> tuple[str, list[str], int]:
    name, thing = draw.choice(NAMES), draw.choice(THINGS)
    boxes, each, given = draw.randint(2, 9), draw.randint(3, 12), draw.randint(1, 5)
    total = boxes * each
    return (
        f"{name} buys {boxes} boxes with {each} {thing} each and gives {given} {thing} away. "
        f"How many {thing} does {name} have left?",
        [
            f"{boxes} boxes with {each} {thing} each are {boxes} * {each} = {total} {thing}.",
            f"After giving {given} away, {total} - {given} = {total - given} are left.",
        ],
        total - given,
    )


def _shared(draw: random.Random) -> tuple[str, list[str], int]:
    (name, other), thing = draw.sample(NAMES, 2), draw.choice(THINGS)
    people, share, more = draw.randint(2, 8), draw.randint(2, 12), draw.randint(2, 20)
    total = people * share
    return (
        f"{name} shares {total} {thing} equally among {people} friends. {other} is one of them and "
        f"had {more} {thing} before. How many {thing} does {other} have now?",
        [
            f"Each friend gets {total} / {people} = {share} {thing}.",
            f"{other} had {more} before, so now there are {more} + {share} = {more + share}.",
        ],
        more + share,
    )


def _saved(draw: random.Random) -> tuple[str, list[str], int]:
    name = draw.choice(NAMES)
    week, weeks, price = draw.randint(3, 15), draw.randint(2, 9), draw.randint(2, 25)
    total = week * weeks
    return (
        f"{name} saves ${week} a week for {weeks} weeks and then earns ${price} more. "
        f"How many dollars does {name} have?",
        [
            f"In {weeks} weeks, {name} saves {week} * {weeks} = {total} dollars.",
            f"With {price} more that makes {total} + {price} = {total + price} dollars.",
        ],
        total + price,
    )


def _counting(draw: random.Random) -> Exercise:
    kind = draw.choice(sorted(COUNTED))
    items = [(draw.choice((1, 1, 1, 2, 3)), each) for each in draw.sample(COUNTED[kind], 5)]
    items = items[: draw.randint(2, 5)]
    listed = [f"{_article(number, item)} {item}{'s' * (number > 1)}" for number, item in items]
    total = sum(number for number, _ in items)
    counts = ", ".join(f"{item}: {number}" for number, item in items)
    sums = " + ".join(str(number) for number, _ in items)
    return Exercise(
        f"Q: I have {', '.join(listed[:-1])}, and {listed[-1]}. How many {kind} do I have?\n"
        "A: Let's think step by step.",
        f" Here they are with their numbers: {counts}. The sum is {sums} = {total}. "
        f"So the answer is {total}.",
    )


def _article(number: int, item: str) -> str:
    return "an" if number == 1 and item[0] in "aeiou" else NUMBER_WORDS[number]


_KINDS: dict[ExerciseKind, Callable[[random.Random], Exercise]] = {
    "word_problems": _word_problem,
    "counting": _counting,
}
