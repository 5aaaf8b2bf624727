"""The choice that a model finds likeliest."""

import math
from dataclasses import replace

import pytest

from evaluators.answers import Answer
from evaluators.samples import Sample
from evaluators.scorers import CHOICE_SCORERS


def sample(identity: str) -> Sample:
    return Sample(identity, identity, "art", "", (), "?", (), ("A", "B"), "A")


@pytest.mark.parametrize(
    ("log_probabilities", "compat", "strict"),
    [
        ((-1.0, -2.0), "A", "A"),
        ((-2.0, -1.0), "B", "B"),
        ((-1.0, -1.0), "A", None),
        ((-1.0, None), None, None),
        ((-1.0, math.nan), None, None),
        ((-1.0,), None, None),
        ((), None, None),
        ((-math.inf, -3.0), "B", "B"),
    ],
)
def test_the_likeliest_choice(log_probabilities: tuple, compat: str | None, strict: str | None):
    asked = replace(sample("art/0"), choices=(" A", " B"))
    answer = Answer("art/0", "", "", "choice", log_probabilities)
    assert CHOICE_SCORERS["compat"](asked, answer).extracted == compat
    assert CHOICE_SCORERS["strict"](asked, answer).extracted == strict
