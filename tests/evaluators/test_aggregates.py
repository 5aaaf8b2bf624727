"""Averages worked by hand, and averages that are refused."""

import math
from dataclasses import replace

import pytest

from evaluators.aggregates import ScoredAnswer, score_answers, score_benchmark
from evaluators.answers import Answer
from evaluators.benchmarks.upstreams import opencompass
from evaluators.extraction import stated_label
from evaluators.profiles import Decoding, Profile
from evaluators.samples import Sample
from evaluators.scorers import CHOICE_SCORERS, written_label
from nan_merge.errors import EvaluationError

PROFILE = Profile(
    benchmark="exam",
    name="test",
    upstream=opencompass("x.py"),
    samples=lambda folder: [],
    decoding=Decoding(8),
    uses_chat_template=False,
    scorers={"compat": written_label(stated_label), "strict": written_label(stated_label)},
    subsets=("art", "law", "tea"),
    groups={"exam-hard": ("law", "tea")},
)


def scored(subset: str, outcomes: str) -> list[ScoredAnswer]:
    """1 right, 0 wrong, a abstained, c cut off."""
    return [
        ScoredAnswer(
            sample_id=f"{subset}/{number}",
            cluster_id=f"{subset}/{number}",
            subset=subset,
            extracted=None if outcome == "a" else "A",
            is_correct=outcome == "1",
            finish_reason="length" if outcome == "c" else "stop",
        )
        for number, outcome in enumerate(outcomes)
    ]


def test_macro_is_the_mean_of_subsets_and_micro_that_of_samples():
    scores = score_benchmark(
        PROFILE, scored("art", "11") + scored("law", "10a0") + scored("tea", "1c")
    )
    assert [row.name for row in scores.subsets] == ["art", "law", "tea"]
    assert [row.score.value for row in scores.subsets] == [1.0, 0.25, 0.5]
    macro, hard, micro = scores.averages
    assert (macro.name, hard.name, micro.name) == ("exam", "exam-hard", "exam-micro")
    assert macro.score.value == pytest.approx(1.75 / 3)
    assert hard.score.value == pytest.approx(0.375)
    assert micro.score.value == 0.5
    assert macro.score.num_samples == micro.score.num_samples == 8
    assert not scores.refused


def test_rates_are_weighted_as_the_score_is():
    scores = score_benchmark(
        PROFILE, scored("art", "11") + scored("law", "10a0") + scored("tea", "1c")
    )
    macro, _, micro = scores.averages
    assert macro.abstain_rate == pytest.approx(0.25 / 3)
    assert macro.truncation_rate == pytest.approx(0.5 / 3)
    assert micro.abstain_rate == micro.truncation_rate == 0.125


def test_the_error_of_a_macro_average_is_that_of_strata():
    scores = score_benchmark(
        PROFILE, scored("art", "10") + scored("law", "1000") + scored("tea", "11")
    )
    art, law, tea = (row.score.standard_error for row in scores.subsets)
    # Of n answers with share p the error is sqrt(p (1 - p) / (n - 1)).
    assert art == pytest.approx(0.5)
    assert law == pytest.approx(0.25)
    assert tea == 0.0
    assert scores.averages[0].score.standard_error == pytest.approx(math.sqrt(0.25 + 0.0625) / 3)


def test_answers_of_one_cluster_count_as_one():
    twice = [replace(each, cluster_id="law/0") for each in scored("law", "11")]
    scores = score_benchmark(
        PROFILE, scored("art", "10") + twice + scored("law", "00")[1:] + scored("tea", "10")
    )
    law = scores.subsets[1].score
    # Residuals 1/3, 1/3 and -2/3 in two clusters: sqrt(2 / 1 * 2 * (2/3)^2) / 3.
    assert law.standard_error == pytest.approx(math.sqrt(2 * 2 * 4 / 9) / 3)


def test_a_missing_subset_refuses_its_averages_and_no_others():
    profile = replace(PROFILE, groups={"exam-hard": ("law", "tea"), "exam-easy": ("art", "tea")})
    scores = score_benchmark(profile, scored("law", "10") + scored("tea", "11"))
    assert [row.name for row in scores.averages] == ["exam-hard"]
    assert (
        scores.refused["exam"]
        == scores.refused["exam-micro"]
        == (
            "1 of 3 subsets have no answers (art); without them the average would be another number"
        )
    )
    assert "exam-easy" in scores.refused


def sample(identity: str) -> Sample:
    return Sample(identity, identity, "art", "", (), "?", (), ("A", "B"), "A")


def test_answers_are_judged_in_the_order_of_the_samples():
    answers = [Answer("art/1", "", "The answer is B", "stop"), Answer("art/0", "", "A", "length")]
    first, second = score_answers(PROFILE, [sample("art/0"), sample("art/1")], answers, "strict")
    assert (first.sample_id, first.is_correct, first.finish_reason) == ("art/0", True, "length")
    assert (second.extracted, second.is_correct) == ("B", False)


def test_answers_to_other_samples_are_refused():
    with pytest.raises(EvaluationError, match=r"1 answers belong to no sample, e\.g\. art/7"):
        score_answers(PROFILE, [sample("art/0")], [Answer("art/7", "", "A", "stop")], "strict")
    two = [Answer("art/0", "", "A", "stop"), Answer("art/0", "", "B", "stop")]
    with pytest.raises(EvaluationError, match="two answers"):
        score_answers(PROFILE, [sample("art/0")], two, "strict")


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
