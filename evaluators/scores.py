"""From predictions to a score that says how sure it is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from evaluators.predictions import Prediction


@dataclass(frozen=True)
class Score:
    """One number about one model on one benchmark.

    Attributes:
        benchmark: Its name.
        metric: What was counted, e.g. "top1".
        value: In [0, 1].
        standard_error: Of the value, over clusters of samples, same unit.
        num_samples: Samples scored.
    """

    benchmark: str
    metric: str
    value: float
    standard_error: float
    num_samples: int


def score_accuracy(
    benchmark: str, predictions: Sequence[Prediction], metric: str = "top1"
) -> Score:
    """Share of right answers and its standard error.

    With clusters g of samples and residuals r, the error is sqrt(sum_g (sum_{i in g} r_i)^2) / n,
    times sqrt(G / (G - 1)) for G clusters; with one sample a cluster this is the usual error of a
    mean (Liang and Zeger 1986; Miller, arXiv 2411.00640, Eq. 4, for evaluations).

    Raises:
        ValueError: If there are no predictions.
    """
    if not predictions:
        raise ValueError(f"{benchmark}: there are no predictions to score")
    num_samples = len(predictions)
    value = sum(prediction.is_correct for prediction in predictions) / num_samples
    residuals: dict[str, float] = defaultdict(float)
    for prediction in predictions:
        residuals[prediction.cluster_id] += prediction.is_correct - value
    num_clusters = len(residuals)
    if num_clusters < 2:
        return Score(benchmark, metric, value, math.nan, num_samples)
    square = math.fsum(residual**2 for residual in residuals.values())
    error = math.sqrt(square * num_clusters / (num_clusters - 1)) / num_samples
    return Score(benchmark, metric, value, error, num_samples)
