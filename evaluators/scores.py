"""From predictions to a score that says how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from evaluators.clustered_means import ClusteredMeans, numbered


class ScoredSample(Protocol):
    """One sample and what its answer is worth: an image's `Prediction`, or an `Outcome`."""

    @property
    def sample_id(self) -> str:
        """Stable, unique within the benchmark."""
        ...

    @property
    def cluster_id(self) -> str:
        """What samples of one source share."""
        ...

    @property
    def credit(self) -> float:
        """What the answer adds to a score, in [0, 1]."""
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
    """Share of right answers, or mean of credits, and its standard error.

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
    return [(each.cluster_id, each.credit) for each in predictions]


def _mean_score(
    name: str, metric: str, outcomes: Mapping[str, Sequence[tuple[str, float]]]
) -> Score:
    """Mean over benchmarks of (cluster, outcome) means, with the error of `score_average`."""
    empty = [benchmark for benchmark, found in outcomes.items() if not found]
    if empty or not outcomes:
        raise ValueError(f"{', '.join(empty) or name}: there are no predictions to score")
    parts = [(1 / len(outcomes), found) for found in outcomes.values()]
    return _score(name, metric, parts, one_draw=True)


def score_weighted(
    name: str, metric: str, parts: Sequence[tuple[float, Sequence[tuple[str, float]]]]
) -> Score:
    """Weighted mean over parts of the means of their outcomes, and its standard error.

    Each part tells its own spread, however few its samples are; see `ClusteredMeans`.

    Args:
        name: What the score is of.
        metric: Name of what is counted.
        parts: Weight, and (cluster, outcome) of every sample; weights sum to 1.

    Returns:
        The score; its error is nan where exactly one part has a single cluster.

    Raises:
        ValueError: If a part has no samples.
    """
    if not all(found for _, found in parts):
        raise ValueError(f"{name}: there are no predictions to score")
    return _score(name, metric, parts, one_draw=False)


def _score(
    name: str,
    metric: str,
    parts: Sequence[tuple[float, Sequence[tuple[str, float]]]],
    *,
    one_draw: bool,
) -> Score:
    """The score of parts: weight, and (cluster, outcome) of every sample, of which there is one."""
    samples = [(place, *each) for place, (_, found) in enumerate(parts) for each in found]
    strata, clusters, outcomes = zip(*samples, strict=True)
    means = ClusteredMeans(
        np.array(strata),
        numbered(clusters),
        np.array([weight for weight, _ in parts]),
        one_draw=one_draw,
    )
    return Score(name, metric, *means.of(np.array(outcomes, dtype=float)), len(samples))
