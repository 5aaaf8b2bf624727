"""Intervals and tests of paired differences: what is sure, and what could have been seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.paired import Difference, Floats

POWER = 0.8
"""Chance of seeing what is called detectable."""


@dataclass(frozen=True)
class Interval:
    """Bounds of a difference."""

    low: float
    high: float


def score_statistic(won: float, lost: float, num_samples: float, at: float) -> float:
    """How many standard errors a difference of paired shares lies above ``at``.

    The error is that of the likeliest shares whose difference is ``at``, so that it is above zero
    even where the models agree on everything (Tango 1998, Statistics in Medicine 17, 891-908,
    Eq. 24 to 27).

    Args:
        won: Samples that only the candidate has right; any number from 0, not only whole ones.
        lost: Samples that only the baseline has right.
        num_samples: All samples.
        at: The difference in question, in (-1, 1).
    """
    a = 2 * num_samples
    b = (2 * num_samples - won + lost) * at - won - lost
    c = -lost * at * (1 - at)
    likeliest_lost = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = num_samples * (2 * likeliest_lost + at * (1 - at))
    distance = won - lost - num_samples * at
    if variance <= 1e-12 * num_samples:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def score_interval(found: Difference, confidence: float) -> Interval:
    """Two-sided interval that inverts `score_statistic`, for clusters and strata as well.

    The statistic is taken at the effective number of samples, and at the quantile of Student's t
    for the clusters that there are; so a handful of sources makes it wide (after Yang, Sun and
    Hardin 2012, Computational Statistics and Data Analysis 56, 1301-1309, for clustered pairs; the
    adjustment is that of Korn and Graubard 1998 for proportions of surveys). Of credits, a part of
    a sample is won or lost: since a difference d in [-1, 1] has d^2 <= |d|, the interval is then
    rather too wide.
    """
    from scipy.optimize import brentq
    from scipy.stats import t

    limit = float(t.ppf((1 + confidence) / 2, found.freedom))
    n = found.effective_samples
    won, lost = found.won * n, found.lost * n

    def bound(sign: int) -> float:
        def beyond(at: float) -> float:
            return sign * score_statistic(won, lost, n, at) - limit

        edge = -sign * (1 - 1e-9)
        if beyond(edge) <= 0:
            return float(-sign)
        root: Any = brentq(beyond, edge, found.value, xtol=1e-7)
        return float(root)

    return Interval(bound(1), bound(-1))


def bootstrap_interval(draws: Floats, confidence: float) -> Interval:
    """Two-sided percentile interval of a bootstrap (Efron and Tibshirani 1993, section 13.3)."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def interval_of(found: Difference, draws: Floats, confidence: float) -> Interval:
    """The bootstrap's interval and the score interval together: the outer bounds of both.

    A bootstrap is too sure where few samples flip (with none it has no width) or where sources are
    few; the score interval is not, but knows clusters by one number only.
    """
    first, second = bootstrap_interval(draws, confidence), score_interval(found, confidence)
    return Interval(min(first.low, second.low), max(first.high, second.high))


def p_above(found: Difference, draws: Floats, at: float) -> float:
    """One-sided p of a difference of at most ``at``: small if it is surely above.

    The larger one of the score test and the bootstrap, as in `interval_of`.
    """
    from scipy.stats import t

    n = found.effective_samples
    statistic = score_statistic(found.won * n, found.lost * n, n, at)
    return max(float(t.sf(statistic, found.freedom)), _share(draws <= at))


def p_below(found: Difference, draws: Floats, at: float) -> float:
    """One-sided p of a difference of at least ``at``: small if it is surely below."""
    from scipy.stats import t

    n = found.effective_samples
    statistic = score_statistic(found.won * n, found.lost * n, n, at)
    return max(float(t.cdf(statistic, found.freedom)), _share(draws >= at))


def _share(hits: NDArray[np.bool_]) -> float:
    """Share of resamples, counting the data itself as one, so that it is never zero."""
    return (int(hits.sum()) + 1) / (len(hits) + 1)


def p_of_no_difference(found: Difference) -> tuple[float, str]:
    """Two-sided p of no difference, and the test's name.

    Exact McNemar (binomial on the samples that flipped) where samples are independent, count the
    same, and are right or wrong; else the t test over clusters or samples, which asks nothing of
    what a sample is worth.
    """
    if found.num_won + found.num_lost == 0:
        return 1.0, "no sample flipped"
    if not found.is_clustered and found.num_strata == 1 and not found.is_graded:
        from statsmodels.stats.contingency_tables import mcnemar

        table = [[0, found.num_won], [found.num_lost, 0]]
        result: Any = mcnemar(table, exact=True)
        return float(result.pvalue), "exact McNemar"
    from scipy.stats import t

    if math.isnan(found.standard_error):
        return 1.0, "t over sources"
    if found.standard_error <= 1e-12 * abs(found.value):
        # All samples changed alike, which has no spread to divide by: the score test has one.
        n = found.effective_samples
        statistic = score_statistic(found.won * n, found.lost * n, n, 0.0)
        return 2 * float(t.sf(abs(statistic), found.freedom)), "score test"
    distance = abs(found.value) / found.standard_error
    unclustered = "stratified t" if found.num_strata > 1 else "paired t"
    name = "t over sources" if found.is_clustered else unclustered
    return 2 * float(t.sf(distance, found.freedom)), name


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for their number, so that any below alpha holds (Holm 1979).

    As statsmodels' `multipletests`, which collects garbage at every call and takes a thousand
    times as long.
    """
    count = len(p_values)
    order = sorted(range(count), key=lambda place: p_values[place])
    corrected, largest = [0.0] * count, 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, p_values[place] * (count - rank)))
        corrected[place] = largest
    return corrected


def detectable(found: Difference, margin: float, alpha: float) -> float:
    """The smallest loss beyond a margin that would have been seen with a chance of `POWER`.

    It is (t_{1-alpha} + z_{power}) times the standard error of the likeliest shares at a loss of
    the margin.

    Args:
        found: The comparison.
        margin: Loss that is allowed, in (0, 1).
        alpha: One-sided error rate.
    """
    from scipy.stats import norm, t

    limit = float(t.ppf(1 - alpha, found.freedom) + norm.ppf(POWER))
    return limit * _error_at(found, -margin)


def samples_needed(found: Difference, margin: float, alpha: float) -> int:
    """Samples of the same kind with which an equal candidate would pass with a chance of `POWER`.

    By the normal approximation of a one-sided test of the margin.
    """
    from statsmodels.stats.power import normal_sample_size_one_tail

    deviation = _error_at(found, -margin) * math.sqrt(found.num_samples)
    needed = normal_sample_size_one_tail(margin, POWER, alpha, deviation, deviation)
    return math.ceil(float(needed))


def _error_at(found: Difference, at: float) -> float:
    """Standard error of the difference if it were ``at``."""
    n = found.effective_samples
    at = max(min(at, 1 - 1e-9), -1 + 1e-9)
    statistic = score_statistic(found.won * n, found.lost * n, n, at)
    if statistic and math.isfinite(statistic):
        return abs((found.value - at) / statistic)
    return found.standard_error if found.standard_error > 0 else math.sqrt(abs(at) / n)


def noise_of(repeated: Difference) -> float:
    """How far a model's score may lie from its own at another time, by the engine alone.

    The larger one of what was seen and of 1.96 standard deviations of a difference in which every
    flip is as likely up as down.
    """
    deviation = math.sqrt((repeated.won + repeated.lost) / repeated.effective_samples)
    return max(abs(repeated.value), 1.96 * deviation)
