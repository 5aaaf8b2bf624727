"""Answers that the same run with another seed has: taken over, not asked again.

A record's key says all that shaped it. A base model that was not trained here, and a merge that
draws nothing at random, are the same for every seed, and so are the keys of their records.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from evaluators.predictions import read_key
from nan_merge.publish import write_bytes_atomically


def take_over(record: Path, key: str, earlier: Iterable[Path]) -> None:
    """Copy a finished record of the same key to its place, unless it is there.

    Args:
        record: Where the record belongs.
        key: Of all that shapes it.
        earlier: Where other runs keep theirs; such files need not exist.
    """
    if read_key(record) == key:
        return
    found = next((path for path in earlier if read_key(path) == key), None)
    if found is not None:
        write_bytes_atomically(record, found.read_bytes())
