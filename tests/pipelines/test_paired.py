from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from evaluators.scores import score_weighted
from pipelines.paired import Pairs, bootstrap, cluster_groups, difference_of, joined, pairs_of
from pipelines.paired_tests import (
    bootstrap_interval,
    detectable,
    holm,
    interval_of,
    noise_of,
    p_above,
    p_below,
    p_of_no_difference,
    samples_needed,
    score_interval,
    score_statistic,
)


def independent(won: int, lost: int, num_samples: int) -> Pairs:
    """Pairs of independent samples of one benchmark."""
    candidate, baseline = np.zeros(num_samples, bool), np.zeros(num_samples, bool)
    candidate[:won] = True
    baseline[won : won + lost] = True
    ids = np.arange(num_samples).astype(str)
    return pairs_of(candidate, baseline, ids, np.full(num_samples, "all"))


def answered(*samples: tuple[str, int, int], subsets: str | None = None) -> Pairs:
    """Pairs from (cluster, candidate is right, baseline is right)."""
    clusters, candidate, baseline = zip(*samples, strict=True)
    return pairs_of(
        np.array(candidate, bool),
        np.array(baseline, bool),
        np.array(clusters),
        np.array(list(subsets or "a" * len(samples))),
    )


def test_a_difference_and_its_error_over_clusters_by_hand():
    found = difference_of(answered(("x", 1, 1), ("x", 1, 0), ("y", 0, 0), ("z", 0, 0)))
    # One sample of four is gained, in x. Residuals: x 3/4 - 1/4, y -1/4, z -1/4.
    # sqrt(3 / 2 * (4 + 1 + 1) / 16) / 4 = 3/16
    assert (found.value, found.standard_error) == pytest.approx((0.25, 3 / 16))
    assert (found.candidate, found.baseline) == (0.5, 0.25)
    assert (found.num_won, found.num_lost, found.num_clusters) == (1, 0, 3)


def test_a_macro_average_weighs_subsets_and_not_samples():
    # Of a one of four is gained, of b one of two lost: (1/4 - 1/2) / 2
    a = ("1", 1, 0), ("2", 0, 0), ("3", 1, 1), ("4", 1, 1)
    found = difference_of(answered(*a, ("5", 0, 1), ("6", 1, 1), subsets="aaaabb"))
    assert found.value == pytest.approx(-1 / 8)
    # Residuals of a: 3/4, -1/4, -1/4, -1/4, each by 1/8 sqrt(4/3); of b: -1/2, 1/2 by 1/4 sqrt(2)
    expected = math.sqrt(12 / 16 / 64 * 4 / 3 + 2 / 4 / 16 * 2)
    assert found.standard_error == pytest.approx(expected)


def test_errors_are_those_of_scores():
    generator = np.random.default_rng(3)
    strata, cluster = np.repeat([0, 1, 2, 3], [1, 1, 30, 40]), np.r_[0, 1, np.arange(70) // 3 + 2]
    right, before = generator.random(72) < 0.7, generator.random(72) < 0.6
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    found = difference_of(Pairs(right, before, strata, cluster, weights))
    parts = [
        (
            weight,
            [(str(cluster[i]), float(right[i]) - before[i]) for i in np.flatnonzero(strata == s)],
        )
        for s, weight in enumerate(weights)
    ]
    score = score_weighted("average", "accuracy", parts)
    assert (found.value, found.standard_error) == pytest.approx((score.value, score.standard_error))


def test_the_error_of_independent_samples_is_that_of_a_mean():
    found = difference_of(independent(60, 45, 1319))
    assert found.standard_error == pytest.approx(stats.sem(independent(60, 45, 1319).differences))
    assert found.effective_samples == pytest.approx(1319)


def test_a_model_does_not_differ_from_itself():
    found = difference_of(answered(("x", 1, 1), ("y", 0, 0), ("z", 1, 1)))
    assert (found.value, found.standard_error) == (0, 0)
    assert p_of_no_difference(found) == (1.0, "no sample flipped")


def test_benchmarks_joined_may_share_clusters():
    first = answered(("x", 1, 0), ("y", 0, 0))
    second = answered(("x", 1, 0), ("x", 1, 1), ("z", 0, 1))
    pairs = joined([(first, np.array(["x", "y"])), (second, np.array(["x", "x", "z"]))])
    found = difference_of(pairs)
    assert found.value == pytest.approx((1 / 2 + 0) / 2)
    assert found.num_clusters == 3
    assert [list(each) for each in cluster_groups(pairs)] == [[0, 1]]


def test_strata_without_shared_clusters_are_drawn_from_apart():
    pairs = answered(("1", 1, 0), ("2", 0, 0), ("3", 1, 1), subsets="aab")
    assert [list(each) for each in cluster_groups(pairs)] == [[0], [1]]


def test_chains_of_shared_clusters_make_one_group():
    samples = ("x", 1, 0), ("x", 1, 0), ("y", 0, 0), ("y", 0, 0), ("z", 0, 0), ("w", 1, 1)
    pairs = answered(*samples, subsets="cabacd")
    # x joins c and a, y joins b and a, z lies in c alone, w in d alone.
    assert [list(each) for each in cluster_groups(pairs)] == [[0, 1, 2], [3]]


def test_the_published_score_interval():
    # Bentur et al. 2009 in Fagerland, Lydersen and Laake, Statistical Analysis of Contingency
    # Tables, chapter 8: 1 and 7 of 21 pairs disagree; Tango's 95 % interval is -0.517 to -0.026.
    for bound, quantile in ((-0.517, 1.96), (-0.026, -1.96)):
        assert score_statistic(1, 7, 21, bound) == pytest.approx(quantile, abs=0.01)


def test_the_score_statistic_at_no_difference_is_mcnemars():
    expected = mcnemar([[0, 25], [10, 0]], exact=False, correction=False).statistic
    assert score_statistic(25, 10, 300, 0.0) ** 2 == pytest.approx(expected)


def test_the_score_interval_inverts_the_statistic():
    found = difference_of(independent(12, 30, 400))
    interval = score_interval(found, 0.90)
    limit = stats.t.ppf(0.95, 399)
    assert score_statistic(12, 30, 400, interval.low) == pytest.approx(limit, abs=1e-4)
    assert score_statistic(12, 30, 400, interval.high) == pytest.approx(-limit, abs=1e-4)


def test_without_a_flip_the_interval_has_the_width_of_wilsons():
    # With no discordant pair, z = n d / sqrt(n d (1 - d)): Wilson's bound for 0 of n.
    interval = score_interval(difference_of(independent(0, 0, 500_000)), 0.95)
    expected = proportion_confint(0, 500_000, alpha=0.05, method="wilson")[1]
    assert interval.high == pytest.approx(expected, rel=1e-3)
    assert interval.low == pytest.approx(-expected, rel=1e-3)


def test_few_sources_make_the_interval_wide():
    few = difference_of(answered(*((str(place % 5), place < 8, place < 4) for place in range(100))))
    many = difference_of(answered(*((str(place), place < 8, place < 4) for place in range(100))))
    assert few.value == many.value
    narrow, wide = score_interval(many, 0.95), score_interval(few, 0.95)
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)


def test_where_nothing_flips_the_clusters_of_the_baseline_count():
    # All samples of a source are right or wrong together: 4 sources are 4 samples.
    pairs = answered(*((str(place % 4), place % 4 < 2, place % 4 < 2) for place in range(400)))
    assert difference_of(pairs).effective_samples < 8


def test_the_bootstrap_has_the_moments_of_its_resamples():
    draws = bootstrap(independent(60, 45, 1319), 20_000, 0)
    error = difference_of(independent(60, 45, 1319)).standard_error
    assert draws.mean() == pytest.approx(15 / 1319, abs=4 * error / math.sqrt(20_000))
    assert draws.std() == pytest.approx(error, rel=0.03)


def test_the_bootstrap_agrees_with_scipys():
    pairs = independent(25, 40, 600)
    ours = bootstrap_interval(bootstrap(pairs, 10_000, 0), 0.95)
    theirs = stats.bootstrap(
        (pairs.differences,), np.mean, n_resamples=2000, method="percentile", rng=0
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.004)
    assert ours.high == pytest.approx(theirs.high, abs=0.004)


def test_a_stratified_bootstrap_agrees_with_drawing_by_hand():
    generator = np.random.default_rng(1)
    strata = np.repeat([0, 1, 2], [10, 40, 150])
    won, lost = generator.random(200) < 0.2, generator.random(200) < 0.1
    pairs = Pairs(won, lost, strata, np.arange(200), np.full(3, 1 / 3))
    by_hand = []
    for _ in range(4000):
        places = [
            generator.choice(np.flatnonzero(strata == s), (strata == s).sum()) for s in (0, 1, 2)
        ]
        by_hand.append(np.mean([pairs.differences[each].mean() for each in places]))
    draws = bootstrap(pairs, 10_000, 0)
    assert draws.mean() == pytest.approx(np.mean(by_hand), abs=0.006)
    assert draws.std() == pytest.approx(np.std(by_hand), rel=0.06)


def test_a_cluster_bootstrap_agrees_with_drawing_by_hand():
    generator = np.random.default_rng(2)
    cluster = np.repeat(np.arange(30), generator.integers(1, 9, 30))
    tendency = generator.random(30)[cluster]
    won, lost = generator.random(len(cluster)) < tendency / 2, generator.random(len(cluster)) < 0.1
    pairs = Pairs(won, lost, np.zeros(len(cluster), int), cluster, np.ones(1))
    members = [np.flatnonzero(cluster == number) for number in range(30)]
    by_hand = [
        pairs.differences[
            np.concatenate([members[g] for g in generator.integers(0, 30, 30)])
        ].mean()
        for _ in range(4000)
    ]
    draws = bootstrap(pairs, 10_000, 0)
    assert draws.mean() == pytest.approx(np.mean(by_hand), abs=0.006)
    assert draws.std() == pytest.approx(np.std(by_hand), rel=0.06)


def test_a_draw_never_leaves_a_stratum_empty():
    samples = [("x", 1, 0), *((str(place), 0, 0) for place in range(6)), ("x", 1, 0)]
    draws = bootstrap(answered(*samples, subsets="aaaaaaab"), 500, 0)  # b has samples in x alone
    assert np.isfinite(draws).all()


def test_the_same_seed_gives_the_same_bootstrap():
    pairs = independent(3, 5, 60)
    assert np.array_equal(bootstrap(pairs, 1000, 7), bootstrap(pairs, 1000, 7))
    assert not np.array_equal(bootstrap(pairs, 1000, 7), bootstrap(pairs, 1000, 8))


def test_independent_samples_are_tested_by_exact_mcnemar():
    p_value, test = p_of_no_difference(difference_of(independent(45, 60, 1319)))
    assert (p_value, test) == (pytest.approx(stats.binomtest(45, 105).pvalue), "exact McNemar")
    assert p_value == pytest.approx(0.17, abs=0.005)


def test_samples_that_all_changed_alike_are_no_proof_of_no_difference():
    # Two subsets of 8, every sample gained: there is no spread, and yet no doubt.
    won = answered(*((str(place), 1, 0) for place in range(16)), subsets="aaaaaaaabbbbbbbb")
    assert difference_of(won).standard_error == 0
    p_value, test = p_of_no_difference(difference_of(won))
    # z = 16 / sqrt(16) = 4 with 14 degrees of freedom
    assert (p_value, test) == (pytest.approx(2 * stats.t.sf(4, 14)), "score test")
    # Of two sources a little doubt stays.
    two = answered(*((str(place % 2), 1, 0) for place in range(16)))
    assert 0.05 < p_of_no_difference(difference_of(two))[0] < 1


def test_samples_of_shared_sources_are_tested_over_the_sources():
    pairs = answered(*((str(place % 12), place % 5 == 0, place % 7 == 0) for place in range(120)))
    p_value, test = p_of_no_difference(difference_of(pairs))
    means = [pairs.differences[pairs.cluster == number].mean() for number in range(12)]
    assert test == "t over sources"  # sources of one size: the t test of their means
    assert p_value == pytest.approx(stats.ttest_1samp(means, 0).pvalue)


def test_the_worked_example_of_a_gate_that_p_values_would_deceive():
    # 60 lost and 45 won of 1,319: McNemar finds nothing, yet 2 points may well be lost.
    found, draws = (
        difference_of(independent(45, 60, 1319)),
        bootstrap(independent(45, 60, 1319), 10_000, 0),
    )
    interval = interval_of(found, draws, 0.90)
    assert found.value == pytest.approx(-0.0114, abs=1e-4)
    assert interval.low == pytest.approx(-0.0241, abs=5e-4)
    assert p_above(found, draws, -0.02) > 0.05
    assert p_below(found, draws, -0.02) > 0.05


def test_bounds_and_p_values_agree():
    pairs = independent(20, 38, 900)
    found, draws = difference_of(pairs), bootstrap(pairs, 10_000, 0)
    interval = interval_of(found, draws, 0.90)
    assert (
        p_above(found, draws, interval.low - 0.002)
        < 0.05
        < p_above(found, draws, interval.low + 0.002)
    )
    assert (
        p_below(found, draws, interval.high + 0.002)
        < 0.05
        < p_below(found, draws, interval.high - 0.002)
    )


@pytest.mark.parametrize("p_values", [[], [0.2], [0.01, 0.04, 0.03, 0.005], [0.9, 0.5, 0.5, 0.001]])
def test_holm_is_statsmodels(p_values: list[float]):
    expected = multipletests(p_values, method="holm")[1] if p_values else []
    assert holm(p_values) == pytest.approx(list(expected))


def test_what_is_detectable_is_seen_four_times_in_five():
    # A one-sided z test at 5 % sees 2.49 standard errors with a chance of 80 %.
    found = difference_of(independent(660, 660, 13_190))
    error = math.sqrt(0.1 / 13_190)
    assert detectable(found, 0.02, 0.05) == pytest.approx((1.6449 + 0.8416) * error, rel=0.03)
    # And with so many samples the margin is what is detectable: (2.49 / 0.02)^2 * 0.1
    assert samples_needed(found, 0.02, 0.05) == pytest.approx((2.4865 / 0.02) ** 2 * 0.1, rel=0.05)


def test_noise_is_what_a_repetition_shows_or_may_show():
    assert noise_of(difference_of(independent(0, 0, 1000))) == 0
    assert noise_of(difference_of(independent(5, 5, 1000))) == pytest.approx(
        1.96 * math.sqrt(10) / 1000
    )
    assert noise_of(difference_of(independent(40, 0, 1000))) == pytest.approx(0.04)


def test_a_single_source_says_nothing_about_its_error():
    found = difference_of(answered(("x", 1, 0), ("x", 0, 0), ("x", 1, 1)))
    assert math.isnan(found.standard_error)
    interval = score_interval(found, 0.95)
    assert interval.low < -0.9 and interval.high > 0.9


def test_nothing_to_compare_is_refused():
    nobody, nowhere = np.zeros(0, bool), np.zeros(0, int)
    with pytest.raises(ValueError, match="no samples"):
        difference_of(Pairs(nobody, nobody, nowhere, nowhere, np.ones(1)))
