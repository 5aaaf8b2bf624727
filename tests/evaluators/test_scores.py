import math
import random
import statistics

import pytest

from evaluators.answers import Answer
from evaluators.language_scores import Outcome
from evaluators.predictions import Prediction
from evaluators.profiles import Verdict
from evaluators.samples import Sample
from evaluators.scores import score_accuracy, score_average, score_weighted


def answered(*outcomes: tuple[str, int]) -> list[Prediction]:
    """Predictions of these (cluster, right or wrong), with sample ids by place."""
    return [
        Prediction(f"sample-{place}", cluster, "yes", "yes" if right else "no", -0.1)
        for place, (cluster, right) in enumerate(outcomes)
    ]


def test_without_shared_sources_the_error_is_that_of_a_mean():
    score = score_accuracy("a", answered(("w", 1), ("x", 1), ("y", 1), ("z", 0)))
    # p = 3/4; sqrt(p (1 - p) / (n - 1)) = sqrt(3/16 / 3) = 1/4
    assert (score.benchmark, score.metric, score.num_samples) == ("a", "top1", 4)
    assert (score.value, score.standard_error) == pytest.approx((0.75, 0.25))


def test_samples_of_one_source_count_once():
    score = score_accuracy("a", answered(("x", 1), ("x", 1), ("y", 0), ("y", 0)))
    # Residuals by cluster: +1 and -1; sqrt(2 / 1 * (1 + 1)) / 4 = 1/2
    assert (score.value, score.standard_error) == pytest.approx((0.5, 0.5))


def test_one_source_alone_has_no_error():
    assert math.isnan(score_accuracy("a", answered(("x", 1), ("x", 0))).standard_error)


def test_an_average_over_benchmarks_that_share_sources_by_hand():
    score = score_average(
        {
            "a": answered(("x", 1), ("y", 0)),
            "b": answered(("x", 1), ("x", 1), ("y", 0), ("z", 0)),
        }
    )
    # Both means are 1/2; a sample weighs 1/4 in a and 1/8 in b.
    # x: 1/4 * 1/2 + 1/8 * 1 = 1/4;  y: -1/4 * 1/2 - 1/8 * 1/2 = -3/16;  z: -1/16
    # sqrt(3 / 2 * (16 + 9 + 1) / 256 ) = sqrt(78 / 512)
    assert score.value == 0.5
    assert score.standard_error == pytest.approx(math.sqrt(78 / 512))
    assert (score.benchmark, score.num_samples) == ("average", 6)


def test_a_benchmark_of_one_source_makes_the_error_of_an_average_unknown():
    one, three = answered(("x", 1), ("x", 0)), answered(("y", 0), ("z", 0), ("w", 1))
    average = score_average({"a": one, "b": three})
    assert average.value == pytest.approx(5 / 12)
    assert math.isnan(average.standard_error)


def test_an_average_weighs_benchmarks_and_not_samples():
    score = score_average({"a": answered(("x", 1)), "b": answered(("y", 0), ("z", 0), ("w", 0))})
    assert score.value == 0.5


def test_an_average_of_one_benchmark_is_its_score():
    answers = answered(("x", 1), ("x", 0), ("y", 1), ("z", 0), ("z", 1))
    score, average = score_accuracy("a", answers), score_average({"a": answers})
    assert (average.value, average.standard_error) == (score.value, score.standard_error)


def test_what_cannot_be_scored_is_refused():
    answers = {"a": answered(("x", 1), ("y", 0))}
    with pytest.raises(ValueError, match="no predictions"):
        score_average({})
    with pytest.raises(ValueError, match="b: there are no predictions"):
        score_average({**answers, "b": []})


def test_each_part_tells_its_own_spread_by_hand():
    parts = [
        (0.25, [("x", 1.0), ("y", 0.0)]),
        (0.75, [("p", 1.0), ("q", 1.0), ("q", 0.0), ("r", 0.0)]),
    ]
    score = score_weighted("average", "top1", parts)
    # Both means are 1/2. The first part's error is that of a mean of two: sqrt(1/4 / 1) = 1/2.
    # The second's: residuals by cluster 1/2, 0, -1/2; sqrt(3 / 2 * 1/2) / 4.
    expected = (0.25 * 0.5) ** 2 + (0.75 * math.sqrt(3 / 4) / 4) ** 2
    assert (score.value, score.num_samples) == (0.5, 6)
    assert score.standard_error == pytest.approx(math.sqrt(expected))


def test_parts_of_one_sample_are_drawn_from_one_part():
    lone = [
        (0.25, [(name, right)]) for name, right in zip("wxyz", (1.0, 1.0, 1.0, 0.0), strict=True)
    ]
    score = score_weighted("average", "top1", lone)
    # As if the four were samples of one part: see the first test.
    assert (score.value, score.standard_error) == pytest.approx((0.75, 0.25))


def test_a_single_part_of_one_sample_has_no_error():
    parts = [(0.5, [("x", 1.0)]), (0.5, [("y", 1.0), ("z", 0.0)])]
    assert math.isnan(score_weighted("average", "top1", parts).standard_error)


def test_the_error_of_a_weighted_mean_is_the_spread_of_many_draws():
    draw = random.Random(0)
    chances = (0.1, 0.5, 0.9)

    def score():
        parts = [
            (1 / 3, [(f"{part}/{place}", float(draw.random() < chance)) for place in range(3)])
            for part, chance in enumerate(chances)
        ]
        return score_weighted("average", "top1", parts)

    found = [score() for _ in range(4000)]
    true = math.sqrt(sum(chance * (1 - chance) / 3 for chance in chances)) / 3
    assert statistics.stdev(each.value for each in found) == pytest.approx(true, rel=0.05)
    squares = statistics.fmean(each.standard_error**2 for each in found)
    assert squares == pytest.approx(true**2, rel=0.05)


def test_a_partly_right_answer_counts_for_its_credit():
    sample = Sample("1", "1", "a", "", (), "?", (), (), "3")
    answers = [Outcome(sample, Answer("1", "", "", "stop"), Verdict("3", False, 0.25))]
    answers += [Outcome(sample, Answer("1", "", "", "stop"), Verdict("3", True))]
    assert [each.credit for each in answers] == [0.25, 1.0]
    assert score_accuracy("a", answers).value == 0.625
