"""Pack samples into shards, the unit in which a model's work is handed out, lost and done again."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def pack_shards(prefixes: Sequence[Hashable], num_samples: int) -> list[list[int]]:
    """Group samples by their common prompt prefix and pack the groups into shards.

    A prefix is computed once where its samples follow each other in one shard. Groups come in
    the order of their first sample, samples in their own order. A group of more than
    ``num_samples`` is cut; smaller ones share a shard as long as they fit whole. The result does
    not depend on anything but the arguments: a run that is continued asks for the same shards.

    Args:
        prefixes: One key per sample; equal keys, equal prefix.
        num_samples: Most samples of a shard.

    Returns:
        Shards as lists of places in ``prefixes``; every place once.

    >>> pack_shards(["law", "art", "law", "art", "law", "tea"], 3)
    [[0, 2, 4], [1, 3, 5]]
    """
    if num_samples < 1:
        raise ValueError(f"a shard needs at least one sample, got {num_samples}")
    groups: dict[Hashable, list[int]] = {}
    for place, prefix in enumerate(prefixes):
        groups.setdefault(prefix, []).append(place)
    shards: list[list[int]] = []
    for group in groups.values():
        if shards and len(shards[-1]) + len(group) <= num_samples:
            shards[-1] += group
        else:
            shards += [group[at : at + num_samples] for at in range(0, len(group), num_samples)]
    return shards
