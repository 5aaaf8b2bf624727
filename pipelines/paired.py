"""Differences between two models that answered the same samples; pure functions over arrays.

A score is a weighted mean over strata (the subsets of a benchmark, or of several benchmarks) of the
share of right answers, or of credits in [0, 1] where a protocol gives a part of the score. Samples
of one source form a cluster and are not independent; a cluster may lie in several strata, as a font
does that two tasks draw with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evaluators.clustered_means import ClusteredMeans, Floats, Places

Credits = NDArray[np.bool_ | np.float64]
"""Right or wrong, or shares of the full score in [0, 1]."""
FEW_DISCORDANT = 10
"""With fewer samples on which the models disagree, their design effect cannot be estimated."""
CELLS_AT_ONCE = 4_000_000
"""Most numbers that a bootstrap holds at once."""


@dataclass(frozen=True)
class Pairs:
    """Verdicts on the answers of two models to the same n samples.

    Attributes:
        candidate: (n,) whether the candidate is right, or its credits in [0, 1].
        baseline: (n,) the same of the baseline.
        stratum: (n,) number of each sample's stratum.
        cluster: (n,) number of each sample's cluster.
        weights: (S,) of the strata in the score; they sum to 1.
    """

    candidate: Credits
    baseline: Credits
    stratum: Places
    cluster: Places
    weights: Floats

    @property
    def differences(self) -> Floats:
        """(n,) 1 where only the candidate is right, -1 where only the baseline is, else 0.

        Of credits, anything between.
        """
        return self.candidate.astype(np.float64) - self.baseline

    @property
    def is_graded(self) -> bool:
        """Whether some credit is neither 0 nor 1."""
        return not all(np.isin(each, (0, 1)).all() for each in (self.candidate, self.baseline))

    @property
    def num_won(self) -> int:
        """Samples that only the candidate has right, or more right."""
        return int(np.count_nonzero(self.differences > 0))

    @property
    def num_lost(self) -> int:
        """Samples that only the baseline has right, or more right."""
        return int(np.count_nonzero(self.differences < 0))


@dataclass(frozen=True)
class Difference:
    """A candidate's score minus a baseline's, and how sure that is.

    Attributes:
        value: The difference of scores, in [-1, 1].
        standard_error: Over clusters, same unit; nan where a stratum has a single cluster, which
            shows no spread.
        candidate: The candidate's score.
        baseline: The baseline's score.
        num_samples: Paired samples.
        num_clusters: Sources of samples.
        num_strata: Strata that are averaged.
        freedom: Degrees of freedom: clusters less the groups that they are drawn from.
        won: Weighted share of samples that only the candidate has right; of credits, the weighted
            mean of what it has more.
        lost: The same of the baseline.
        num_won: Number of samples that only the candidate has right.
        num_lost: Number of samples that only the baseline has right.
        effective_samples: How many independent samples would be as sure; at most about
            ``num_samples``.
        is_graded: Whether some answers are partly right.
    """

    value: float
    standard_error: float
    candidate: float
    baseline: float
    num_samples: int
    num_clusters: int
    num_strata: int
    freedom: int
    won: float
    lost: float
    num_won: int
    num_lost: int
    effective_samples: float
    is_graded: bool = False

    @property
    def is_clustered(self) -> bool:
        """Whether samples share sources."""
        return self.num_clusters < self.num_samples


def pairs_of(
    candidate: Credits,
    baseline: Credits,
    clusters: NDArray[np.str_],
    subsets: NDArray[np.str_],
) -> Pairs:
    """Pairs over one benchmark, whose score is the unweighted mean over its subsets.

    Args:
        candidate: (n,) whether the candidate is right, or its credits in [0, 1].
        baseline: (n,) the same of the baseline.
        clusters: (n,) what samples of one source share.
        subsets: (n,) names of the subsets.

    Raises:
        ValueError: If a credit is outside [0, 1] or not a number.
    """
    for credits in (candidate, baseline):
        if not ((credits >= 0) & (credits <= 1)).all():
            raise ValueError("credits must lie in [0, 1]")
    names, stratum = np.unique(subsets, return_inverse=True)
    _, cluster = np.unique(clusters, return_inverse=True)
    weights = np.full(len(names), 1 / len(names))
    return Pairs(candidate, baseline, stratum, cluster, weights)


def joined(parts: list[tuple[Pairs, NDArray[np.str_]]]) -> Pairs:
    """Pairs over several benchmarks, each of which counts the same.

    Args:
        parts: Pairs of each benchmark, and the clusters (n,) of its samples by name, because
            benchmarks may share them.
    """
    shares = [pairs.weights / len(parts) for pairs, _ in parts]
    starts = np.cumsum([0, *(len(pairs.weights) for pairs, _ in parts)])
    strata = [pairs.stratum + start for (pairs, _), start in zip(parts, starts[:-1], strict=True)]
    _, cluster = np.unique(np.concatenate([names for _, names in parts]), return_inverse=True)
    return Pairs(
        np.concatenate([pairs.candidate for pairs, _ in parts]),
        np.concatenate([pairs.baseline for pairs, _ in parts]),
        np.concatenate(strata),
        cluster,
        np.concatenate(shares),
    )


def difference_of(pairs: Pairs) -> Difference:
    """The difference of scores with its standard error over clusters.

    The error is that of `ClusteredMeans`, of differences of outcomes.

    Raises:
        ValueError: If there are no samples, or a stratum has none.
    """
    means = ClusteredMeans(pairs.stratum, pairs.cluster, pairs.weights)
    value, error = means.of(pairs.differences)
    reference, of_baseline = means.of(pairs.baseline.astype(np.float64))
    num_clusters = len(np.unique(pairs.cluster))
    found = Difference(
        value=value,
        standard_error=error,
        candidate=means.of(pairs.candidate.astype(np.float64))[0],
        baseline=reference,
        num_samples=len(pairs.stratum),
        num_clusters=num_clusters,
        num_strata=len(pairs.weights),
        freedom=max(1, num_clusters - len(cluster_groups(pairs))),
        won=means.of(np.maximum(pairs.differences, 0.0))[0],
        lost=means.of(np.maximum(-pairs.differences, 0.0))[0],
        num_won=pairs.num_won,
        num_lost=pairs.num_lost,
        effective_samples=math.nan,
        is_graded=pairs.is_graded,
    )
    return replace(found, effective_samples=_effective_samples(pairs, found, of_baseline))


def cluster_groups(pairs: Pairs) -> list[Places]:
    """Strata that share clusters, together: what one draw of clusters fills. Lists of strata."""
    cells = _cells(pairs)
    label = np.arange(len(pairs.weights))
    while True:  # the lowest stratum that can be reached names a group
        of_cluster = np.full(cells.cluster.max() + 1, len(label))
        np.minimum.at(of_cluster, cells.cluster, label[cells.stratum])
        reached = label.copy()
        np.minimum.at(reached, cells.stratum, of_cluster[cells.cluster])
        if np.array_equal(reached, label):
            return [np.flatnonzero(label == first) for first in np.unique(label)]
        label = reached


def bootstrap(pairs: Pairs, num_resamples: int, seed: int | list[int]) -> Floats:
    """Differences of scores over resamples: the paired bootstrap, stratified and over clusters.

    Clusters are drawn with replacement, as many as there are, within each stratum (within all
    strata that share clusters, together), with all of their samples; both models' answers to a
    sample stay together; every mean is computed anew (Efron and Tibshirani 1993, chapter 8).
    Clusters with the same content are interchangeable, so that a resample is a draw of how often
    each content comes: the same distribution in a fraction of the time.

    Returns:
        (num_resamples,) The same for the same seed.
    """
    generator = np.random.default_rng(seed)
    cells = _cells(pairs)
    total = np.zeros(num_resamples)
    for strata in cluster_groups(pairs):
        inside = np.isin(cells.stratum, strata)
        _, rows = np.unique(cells.cluster[inside], return_inverse=True)
        columns = np.searchsorted(strata, cells.stratum[inside])
        content = np.zeros((rows.max() + 1, 2 * len(strata)))
        content[rows, columns] = cells.total[inside]
        content[rows, columns + len(strata)] = cells.count[inside]
        means = _resampled_means(content, num_resamples, generator)
        total += means @ pairs.weights[strata]
    return total


@dataclass(frozen=True)
class _Cells:
    """Of each cluster in each stratum that it has samples in: sum of differences, and samples."""

    cluster: Places
    stratum: Places
    total: Floats
    count: Floats


def _cells(pairs: Pairs) -> _Cells:
    num_strata = len(pairs.weights)
    key = pairs.cluster.astype(np.int64) * num_strata + pairs.stratum
    keys, place, count = np.unique(key, return_inverse=True, return_counts=True)
    total = np.bincount(place, weights=pairs.differences).astype(np.float64)
    return _Cells(keys // num_strata, keys % num_strata, total, count.astype(np.float64))


def _resampled_means(content: Floats, num_resamples: int, generator: np.random.Generator) -> Floats:
    """Means per stratum (num_resamples, S) over draws of rows of sums (S) and counts (S)."""
    kinds, counts = np.unique(content, axis=0, return_counts=True)
    num_clusters, num_strata = len(content), content.shape[1] // 2
    at_once = max(1, CELLS_AT_ONCE // len(kinds))
    means = np.empty((num_resamples, num_strata))
    for start in range(0, num_resamples, at_once):
        missing = np.arange(start, min(start + at_once, num_resamples))
        while len(missing):
            draws = generator.multinomial(num_clusters, counts / num_clusters, size=len(missing))
            sums = draws @ kinds
            totals, sizes = sums[:, :num_strata], sums[:, num_strata:]
            # A draw that leaves a stratum without samples says nothing about it: draw again.
            whole = (sizes > 0).all(axis=1)
            means[missing[whole]] = totals[whole] / sizes[whole]
            missing = missing[~whole]
    return means


def _effective_samples(pairs: Pairs, found: Difference, baseline_error: float) -> float:
    """Independent samples that would be as sure: n, less for unequal weights and for clusters.

    The design effect is the variance over clusters by that of independent samples, never below 1
    (Kish 1965). Where the models hardly disagree it cannot be estimated from their differences;
    then it is at least that of the baseline's score, since what is easy or hard comes in clusters
    even more than what flips.
    """
    sizes = np.bincount(pairs.stratum, minlength=len(pairs.weights))
    independent = 1 / math.fsum(pairs.weights**2 / sizes)
    if math.isnan(found.standard_error):
        return 1.0
    if not found.is_clustered:
        return independent
    effects = [1.0]
    variance = found.won + found.lost - found.value**2
    if variance > 0:
        effects.append(found.standard_error**2 * independent / variance)
    if found.num_won + found.num_lost < FEW_DISCORDANT:
        spread = found.baseline * (1 - found.baseline)
        effects.append(baseline_error**2 * independent / spread if spread > 0 else 1.0)
    return independent / max(effects)
