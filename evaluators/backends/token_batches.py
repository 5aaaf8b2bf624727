"""Cut prompts into batches: alike lengths together, and a long common prefix computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Tokens = Sequence[int]


@dataclass(frozen=True)
class PrefixGroup:
    """Rows that begin with the same tokens.

    Attributes:
        places: Of the rows.
        num_shared: With how many tokens they all begin; 0 if that is not worth while.
    """

    places: tuple[int, ...]
    num_shared: int


def group_by_prefix(
    rows: Sequence[Tokens], num_last: Sequence[int], fewest_shared: int
) -> list[PrefixGroup]:
    """Find rows whose common prefix is worth computing once.

    In dictionary order, rows with a common prefix are neighbours. A group takes its next neighbour
    in as long as this saves more tokens than it costs: a shorter prefix is paid by all rows.

    Args:
        rows: Token ids; their order does not matter.
        num_last: How many tokens at the end of each row must not be in the prefix.
        fewest_shared: Below that a prefix is not worth while.

    Returns:
        Groups that hold every row once; those without a prefix are one group, the last.

    >>> group_by_prefix([[1, 2, 3, 4], [7], [1, 2, 3, 5]], [1, 1, 1], 2)
    [PrefixGroup(places=(0, 2), num_shared=3), PrefixGroup(places=(1,), num_shared=0)]
    """
    order = sorted(range(len(rows)), key=lambda place: list(rows[place]))
    groups: list[PrefixGroup] = []
    alone: list[int] = []
    at = 0
    while at < len(order):
        places = [order[at]]
        shared = len(rows[order[at]]) - num_last[order[at]]
        for place in order[at + 1 :]:
            common = num_common(rows[places[0]], rows[place])
            common = min(common, shared, len(rows[place]) - num_last[place])
            # A prefix of n tokens saves n for every row but the first.
            if common < fewest_shared or common * len(places) < shared * (len(places) - 1):
                break
            places.append(place)
            shared = common
        if len(places) > 1:
            groups.append(PrefixGroup(tuple(places), shared))
        else:
            alone += places
        at += len(places)
    return groups + ([PrefixGroup(tuple(alone), 0)] if alone else [])


def num_common(one: Tokens, other: Tokens) -> int:
    """With how many equal tokens two rows begin.

    >>> num_common([1, 2, 3], [1, 2, 4, 5])
    2
    """
    most = min(len(one), len(other))
    return next((at for at in range(most) if one[at] != other[at]), most)


def batches(places: Sequence[int], lengths: Sequence[int], most_tokens: int) -> Iterator[list[int]]:
    """Cut rows into batches, the longest first, of so many tokens with their padding.

    Args:
        places: Of the rows wanted.
        lengths: Of all rows.
        most_tokens: Rows times the longest row is at most that, but for a batch of one row.

    >>> list(batches([0, 1, 2, 3], [3, 9, 2, 3], 9))
    [[1], [0, 3, 2]]
    """
    ordered = sorted(places, key=lambda place: -lengths[place])
    while ordered:
        size = max(1, most_tokens // max(1, lengths[ordered[0]]))
        yield ordered[:size]
        ordered = ordered[size:]
