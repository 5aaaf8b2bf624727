"""Answers that are partly right: credits in [0, 1] are compared and gated like right and wrong."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipelines.gate import Rules, decide
from pipelines.paired import Pairs, bootstrap, difference_of, pairs_of
from pipelines.paired_tests import bootstrap_interval, interval_of, p_of_no_difference

GRADES = np.array([0.0, 0.25, 0.5, 1.0])
MARGIN = 0.06


def graded(candidate: list[float], baseline: list[float], clusters: str = "") -> Pairs:
    names = np.array(list(clusters) if clusters else [str(place) for place in range(len(baseline))])
    subsets = np.full(len(baseline), "all")
    return pairs_of(np.array(candidate), np.array(baseline), names, subsets)


def drawn(loss: float, num_samples: int, seed: int, cluster_size: int = 1) -> Pairs:
    """Models whose credits differ on a fifth of the samples, the candidate's by ``loss`` less."""
    generator = np.random.default_rng(seed)
    baseline = generator.choice(GRADES, num_samples)
    moved = np.repeat(generator.random(num_samples // cluster_size) < 0.2, cluster_size)
    up = np.repeat(generator.random(num_samples // cluster_size) < 0.5 - loss / 0.2, cluster_size)
    # Half a point up or down, wherever there is room for it on both sides.
    baseline[moved] = 0.5
    candidate = np.where(moved, np.where(up, 1.0, 0.0), baseline)
    clusters = np.array([str(place // cluster_size) for place in range(num_samples)])
    return pairs_of(candidate, baseline, clusters, np.full(num_samples, "all"))


def test_the_difference_of_credits_by_hand():
    found = difference_of(graded([1, 0.5, 0.25, 0], [0.5, 0.5, 0.5, 0]))
    # Differences 1/2, 0, -1/4, 0; their mean 1/16; deviations 7/16, -1/16, -5/16, -1/16.
    assert found.value == pytest.approx(1 / 16)
    assert found.standard_error == pytest.approx(((49 + 1 + 25 + 1) / 256 / 12) ** 0.5)
    assert (found.candidate, found.baseline) == pytest.approx((7 / 16, 6 / 16))
    assert (found.num_won, found.num_lost, found.is_graded) == (1, 1, True)
    assert (found.won, found.lost) == pytest.approx((1 / 8, 1 / 16))


def test_right_and_wrong_as_credits_give_the_same_numbers():
    right, before = np.array([1, 1, 0, 1, 0, 1], bool), np.array([1, 0, 0, 1, 1, 0], bool)
    names, subsets = np.array(list("aabbcd")), np.array(list("xxxyyy"))
    verdicts = pairs_of(right, before, names, subsets)
    credits = pairs_of(right.astype(float), before.astype(float), names, subsets)
    assert difference_of(credits) == difference_of(verdicts)
    assert not difference_of(credits).is_graded
    assert np.array_equal(bootstrap(credits, 100, 0), bootstrap(verdicts, 100, 0))


def test_mcnemar_is_for_right_and_wrong_alone():
    generator = np.random.default_rng(0)
    candidate, baseline = (generator.choice(GRADES, 200) for _ in range(2))
    p_value, name = p_of_no_difference(difference_of(graded(list(candidate), list(baseline))))
    assert name == "paired t"
    assert p_value == pytest.approx(stats.ttest_rel(candidate, baseline).pvalue)
    whole = graded(list(np.round(candidate)), list(np.round(baseline)))
    assert p_of_no_difference(difference_of(whole))[1] == "exact McNemar"


def test_a_permutation_of_signs_agrees_with_the_test():
    pairs = drawn(0.03, 300, seed=2)
    generator = np.random.default_rng(1)
    signs = generator.choice([-1, 1], size=(20_000, 300))
    means = (signs * pairs.differences).mean(axis=1)
    permuted = (abs(means) >= abs(pairs.differences.mean()) - 1e-12).mean()
    assert p_of_no_difference(difference_of(pairs))[0] == pytest.approx(permuted, abs=0.02)


@pytest.mark.parametrize("cluster_size", [1, 5])
def test_the_interval_is_no_narrower_than_the_bootstrap_and_the_normal_one(cluster_size: int):
    pairs = drawn(0.02, 500, seed=3, cluster_size=cluster_size)
    found, draws = difference_of(pairs), bootstrap(pairs, 4000, 0)
    interval, resampled = interval_of(found, draws, 0.95), bootstrap_interval(draws, 0.95)
    assert interval.low <= resampled.low and interval.high >= resampled.high
    assert interval.high - interval.low >= 2 * 1.9 * found.standard_error


@pytest.mark.parametrize(("loss", "cluster_size"), [(MARGIN, 1), (MARGIN, 5)])
def test_a_loss_of_the_margin_passes_no_more_often_than_alpha(loss: float, cluster_size: int):
    rules, count = Rules(resamples=400), 300
    verdicts = [
        decide({"b": drawn(loss, 500, seed, cluster_size)}, {"b": MARGIN}, rules)[0].verdict
        for seed in range(count)
    ]
    # Alpha is 5 %; three standard errors of a share of 300 are 3.8 %.
    assert verdicts.count("pass") <= count * (0.05 + 0.038)
    assert verdicts.count("fail") <= count * (0.05 + 0.038)


def test_an_equal_candidate_passes_and_a_large_loss_fails():
    rules = Rules(resamples=1000)
    equal = decide({"b": drawn(0.0, 2000, 4)}, {"b": MARGIN}, rules)[0]
    worse = decide({"b": drawn(0.1, 2000, 4)}, {"b": MARGIN}, rules)[0]
    assert (equal.verdict, worse.verdict) == ("pass", "fail")


@pytest.mark.parametrize("credit", [-0.1, 1.1, float("nan")])
def test_what_is_no_share_is_refused(credit: float):
    with pytest.raises(ValueError, match=r"credits must lie in \[0, 1\]"):
        graded([1.0, credit], [0.0, 1.0])
