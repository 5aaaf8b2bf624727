"""The dev split: which samples a search may look at, so that the others stay unseen.

Whole clusters go to one side, by a hash of the cluster's id alone: samples that share a font or a
picture are never split, in no benchmark, and a sample's side does not depend on what else is
evaluated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

from nan_merge.errors import ConfigError

Part = Callable[[str], bool]
"""Whether samples of a cluster belong to a part of the data."""
SALT = "nan-merge dev split:"


def dev_part(share: float) -> Part:
    """The part that a search may see: the clusters whose hash, in [0, 1), is below the share."""
    return lambda cluster: _position(cluster) < share


def held_out_part(share: float) -> Part:
    """All that `dev_part` leaves."""
    return lambda cluster: _position(cluster) >= share


def everything(cluster: str) -> bool:
    """The part that holds all samples."""
    return True


def _position(cluster: str) -> float:
    digest = hashlib.sha256((SALT + cluster).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def refuse_empty_parts(clusters: Mapping[str, Iterable[str]], share: float) -> None:
    """Refuse a split that leaves a benchmark without dev samples, or without others.

    Args:
        clusters: Benchmark -> the clusters of its samples.
        share: As in `dev_part`.

    Raises:
        ConfigError: Names the benchmarks and the side that is empty.
    """
    problems: list[str] = []
    for name, ids in clusters.items():
        known = set(ids)
        num_dev = sum(map(dev_part(share), known))
        if num_dev in (0, len(known)):
            side = "no" if num_dev == 0 else "nothing but"
            problems.append(f"{name} has {side} dev samples (its {len(known)} sources)")
    if problems:
        raise ConfigError(
            f"sweep.dev_share: with {share:g}, {'; '.join(problems)}. Whole sources of samples go "
            "to one side. Choose another share, or evaluate more samples."
        )
