"""Verdicts as they are compared: what counts as an abstention, and what as a broken model."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluators.answers import Answer
from evaluators.language_scores import Outcome
from evaluators.profiles import Verdict
from evaluators.samples import Sample
from nan_merge.errors import DataError
from pipelines.language_records import RecordInfo
from pipelines.outcomes import language_outcomes

INFO = RecordInfo("key", "m", "m/", "mmlu", "oc-ppl", "data/", False, {})


def outcome(number: int, reason: str, *values: float | None) -> Outcome:
    sample = Sample(f"a/{number}", f"a/{number}", "a", "", (), "?", ("A", "B"), ("A", "B"), "A")
    answer = Answer(sample.id, "", "", reason, values)  # type: ignore[arg-type]
    found = None if None in values else "A"
    return Outcome(sample, answer, Verdict(found, found == "A"))


def test_a_prompt_that_is_too_long_is_an_abstention_and_no_broken_model():
    answered = [outcome(0, "choice", -1.0, -2.0), outcome(1, "length", None, None)]
    found = language_outcomes(answered, INFO, Path("r.jsonl"), "mmlu")
    assert found.credits.tolist() == [1.0, 0.0]
    assert found.abstained.tolist() == found.truncated.tolist() == [False, True]
    assert found.knows_truncation


def test_log_probabilities_that_are_not_numbers_are_refused():
    answered = [outcome(0, "choice", -1.0, -2.0), outcome(1, "choice", None, None)]
    with pytest.raises(DataError, match="m on mmlu: 1 of 2 log-probabilities are not numbers"):
        language_outcomes(answered, INFO, Path("r.jsonl"), "mmlu")
