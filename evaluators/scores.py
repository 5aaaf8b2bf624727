"""From predictions to a score that says how sure it is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class ScoredSample(Protocol):
    """One sample and whether it was answered right: an image's `Prediction`, or an `Outcome`."""

    @property
    def sample_id(self) -> str:
        """Stable, unique within the benchmark."""
        ...

    @property
    def cluster_id(self) -> str:
        """What samples of one source share."""
        ...

    @property
    def is_correct(self) -> bool:
        """Whether the answer is right."""
        ...


@dataclass(frozen=True)
class Score:
    """One number about one model on one benchmark.

    Attributes:
        benchmark: Its name; "average" for a mean over benchmarks.
        metric: What was counted, e.g. "top1".
        value: In [0, 1]; in [-1, 1] for a difference.
        standard_error: Of the value, over clusters of samples, same unit; nan where it is unknown
            because some part of the score has one cluster, which shows no spread.
        num_samples: Samples scored.
    """

    benchmark: str
    metric: str
    value: float
    standard_error: float
    num_samples: int


def score_accuracy(
    benchmark: str, predictions: Sequence[ScoredSample], metric: str = "top1"
) -> Score:
    """Share of right answers and its standard error.

    With clusters g of samples and residuals r, the error is sqrt(sum_g (sum_{i in g} r_i)^2) / n,
    times sqrt(G / (G - 1)) for G clusters; with one sample a cluster this is the usual error of a
    mean (Liang and Zeger 1986; Miller, arXiv 2411.00640, Eq. 4, for evaluations).

    Raises:
        ValueError: If there are no predictions.
    """
    return _mean_score(benchmark, metric, {benchmark: _outcomes(predictions)})


def score_average(predictions: Mapping[str, Sequence[ScoredSample]], metric: str = "top1") -> Score:
    """Unweighted mean over benchmarks of the share of right answers, and its standard error.

    Benchmarks may share clusters, so their errors do not just add up. For k benchmarks b of n_b
    samples and G clusters g in all, the error is
    sqrt(G / (G - 1) * sum_g (sum_b 1 / (k n_b) * sum_{i in g, b} r_i)^2).

    Args:
        predictions: Benchmark -> its predictions.
        metric: Name of what is counted.

    Raises:
        ValueError: If there is no benchmark, or one has no predictions.
    """
    outcomes = {name: _outcomes(answers) for name, answers in predictions.items()}
    return _mean_score("average", metric, outcomes)


def _outcomes(predictions: Sequence[ScoredSample]) -> list[tuple[str, float]]:
    return [(each.cluster_id, float(each.is_correct)) for each in predictions]


def _mean_score(
    name: str, metric: str, outcomes: Mapping[str, Sequence[tuple[str, float]]]
) -> Score:
    """Mean over benchmarks of (cluster, outcome) means, with the error of `score_average`."""
    empty = [benchmark for benchmark, found in outcomes.items() if not found]
    if empty or not outcomes:
        raise ValueError(f"{', '.join(empty) or name}: there are no predictions to score")
    means: list[float] = []
    residuals: dict[str, float] = defaultdict(float)
    for found in outcomes.values():
        mean = math.fsum(outcome for _, outcome in found) / len(found)
        means.append(mean)
        for cluster, outcome in found:
            residuals[cluster] += (outcome - mean) / (len(outcomes) * len(found))
    value = math.fsum(means) / len(means)
    num_samples = sum(map(len, outcomes.values()))
    num_clusters = len(residuals)
    # A benchmark of one cluster has a residual of 0, which is not the same as no spread.
    if any(len({cluster for cluster, _ in found}) < 2 for found in outcomes.values()):
        return Score(name, metric, value, math.nan, num_samples)
    square = math.fsum(residual**2 for residual in residuals.values())
    error = math.sqrt(square * num_clusters / (num_clusters - 1))
    return Score(name, metric, value, error, num_samples)


def score_weighted(
    name: str, metric: str, parts: Sequence[tuple[float, Sequence[tuple[str, float]]]]
) -> Score:
    """Weighted mean over parts of the means of their outcomes, and its standard error.

    Each part tells its own spread, however few its samples are. For weights w_b and G_b clusters
    g in part b, the error is
    sqrt(sum_g (sum_b w_b / n_b sqrt(G_b / (G_b - 1)) sum_{i in g, b} r_i)^2),
    that of a stratified mean (Cochran, Sampling Techniques, 3rd ed., section 5.4). Parts of a
    single cluster tell no spread: they are taken as if drawn from one part, which rather makes the
    error too large (section 5A.12 there, collapsed strata).

    Args:
        name: What the score is of.
        metric: Name of what is counted.
        parts: Weight, and (cluster, outcome) of every sample; weights sum to 1.

    Returns:
        The score; its error is nan where exactly one part has a single cluster.

    Raises:
        ValueError: If a part has no samples.
    """
    residuals: dict[str, float] = defaultdict(float)
    means: list[float] = []
    lone: list[tuple[float, float]] = []  # weight and mean of parts of one cluster
    for weight, found in parts:
        if not found:
            raise ValueError(f"{name}: there are no predictions to score")
        mean = math.fsum(outcome for _, outcome in found) / len(found)
        means.append(weight * mean)
        num_clusters = len({cluster for cluster, _ in found})
        if num_clusters == 1:
            lone.append((weight, mean))
            continue
        share = weight / len(found) * math.sqrt(num_clusters / (num_clusters - 1))
        for cluster, outcome in found:
            residuals[cluster] += share * (outcome - mean)
    square = math.fsum(residual**2 for residual in residuals.values()) + _collapsed(lone)
    num_samples = sum(len(found) for _, found in parts)
    return Score(name, metric, math.fsum(means), math.sqrt(square), num_samples)


def _collapsed(lone: Sequence[tuple[float, float]]) -> float:
    """Squared error of a sum of weighted means, each of one cluster; nan of a single one."""
    if len(lone) < 2:
        return math.nan if lone else 0.0
    total = math.fsum(weight for weight, _ in lone)
    centre = math.fsum(weight * mean for weight, mean in lone) / total
    squares = math.fsum((weight * (mean - centre)) ** 2 for weight, mean in lone)
    return squares * len(lone) / (len(lone) - 1)
