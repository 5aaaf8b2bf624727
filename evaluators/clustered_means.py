"""Means of values that come in clusters and strata, with their standard errors: one way for all.

Samples of one source (a font, a picture, a problem) form a cluster and are not independent. A
stratum is a part whose mean counts for itself: a subset of a benchmark, or a benchmark of several.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.intp]


class ClusteredMeans:
    """Weighted means over strata of any values of the same samples, with errors over clusters.

    For strata s of weight w_s, n_s samples and G_s clusters, the error is sqrt(sum_g r_g^2) with
    the residuals r_g = sum_s w_s / n_s sqrt(G_s / (G_s - 1)) sum_{i in g, s} (x_i - mean_s) (Liang
    and Zeger 1986; Cochran, Sampling Techniques, 3rd ed., section 5.4; Miller, arXiv 2411.00640,
    section 4.2). Strata of a single cluster tell no spread: they are taken as if drawn from one
    stratum, which rather makes the error too large (Cochran, section 5A.12, collapsed strata).

    Args:
        stratum: (n,) number of each sample's stratum, from 0.
        cluster: (n,) number of each sample's cluster, from 0.
        weights: (S,) of the strata.
        one_draw: Take all clusters as one draw that fills every stratum, so that the factor is
            sqrt(G / (G - 1)) of all G clusters; then no stratum may have a single one.

    Raises:
        ValueError: If there are no samples, or a stratum has none.
    """

    def __init__(
        self, stratum: Places, cluster: Places, weights: Floats, *, one_draw: bool = False
    ) -> None:
        self._stratum, self._cluster, self._weights = stratum, cluster, weights
        self._sizes = np.bincount(stratum, minlength=len(weights))
        if not len(stratum) or not self._sizes.all():
            raise ValueError("there are no samples to compare")
        counts = _clusters_per_stratum(stratum, cluster, len(weights))
        self._lone = counts == 1
        self._is_unknown = one_draw and bool(self._lone.any())
        if one_draw:
            counts = np.full_like(counts, len(np.unique(cluster)))
        self._factors = np.sqrt(counts / np.maximum(counts - 1, 1)) * ~self._lone

    def of(self, values: Floats) -> tuple[float, float]:
        """Weighted mean and its error; nan where exactly one stratum has a single cluster.

        Args:
            values: (n,) one per sample.
        """
        stratum, weights = self._stratum, self._weights
        means = np.bincount(stratum, weights=values, minlength=len(weights)) / self._sizes
        mean = math.fsum(weights * means)
        if self._is_unknown:
            return mean, math.nan
        parts = (weights / self._sizes * self._factors)[stratum] * (values - means[stratum])
        residuals = np.bincount(self._cluster, weights=parts)
        return mean, math.sqrt(math.fsum(residuals**2) + self._between_lone(means))

    def _between_lone(self, means: Floats) -> float:
        """Squared error of strata of one cluster each, as if drawn from one stratum."""
        weights, means = self._weights[self._lone], means[self._lone]
        if len(weights) < 2:
            return math.nan if len(weights) else 0.0
        centre = (weights * means).sum() / weights.sum()
        squares = ((weights * (means - centre)) ** 2).sum()
        return float(squares * len(weights) / (len(weights) - 1))


def numbered(names: Iterable[Hashable]) -> Places:
    """A number for each name, from 0, the same for the same name."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.intp)


def _clusters_per_stratum(stratum: Places, cluster: Places, num_strata: int) -> Places:
    cells = np.unique(cluster.astype(np.int64) * num_strata + stratum)
    return np.bincount(cells % num_strata, minlength=num_strata)
