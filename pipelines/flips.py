"""Samples that one of two models has right and the other wrong, as a file to browse by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from nan_merge.errors import DataError

Flips = Mapping[str, frozenset[str]]  # benchmark -> ids of samples


@dataclass(frozen=True)
class Flip:
    """A sample that one of two models has right and the other wrong, or less right.

    Attributes:
        benchmark: The benchmark's name.
        sample_id: The sample's.
        model: The model that was compared.
        won: Whether that model has it right, and the baseline wrong or less right.
        answer: The model's, as the scorer took it; None for an abstention.
        baseline_answer: The baseline's.
        gold: The right one.
    """

    benchmark: str
    sample_id: str
    model: str
    won: bool
    answer: str | None
    baseline_answer: str | None
    gold: str


def flips_text(flips: tuple[Flip, ...]) -> str:
    """One JSON object a line."""
    return "".join(f"{json.dumps(asdict(each), ensure_ascii=False)}\n" for each in flips)


def read_flips(path: Path) -> Flips:
    """Ids of the samples in a file of flips, by benchmark.

    Raises:
        DataError: If it is missing or no such file.
    """
    found: dict[str, set[str]] = {}
    try:
        for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n"):
            content = json.loads(line)
            found.setdefault(str(content["benchmark"]), set()).add(str(content["sample_id"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no file of flips ({error}). `nan-merge compare RUN --output DIR` writes "
            "DIR/flips.jsonl."
        ) from error
    return {name: frozenset(ids) for name, ids in found.items()}
