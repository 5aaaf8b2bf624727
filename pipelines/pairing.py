"""Pair two models' verdicts sample by sample; refuse where they were not asked the same."""

from __future__ import annotations

import numpy as np

from nan_merge.errors import DataError
from pipelines.outcomes import Outcomes
from pipelines.paired import Pairs, pairs_of

MENDS = {
    "data": "Evaluate both on the same data (`nan-merge data verify` prints its digest)",
    "profile": "Evaluate both with the same profile",
    "chat template": "Evaluate both with `--chat-template`, or both with `--no-chat-template`",
    "zero-shot heads": "Evaluate both with the same `clip`, whose text tower makes the heads",
    "harness": "Evaluate both with the same harness",
    "judge": "Let one judge read both (`nan-merge rescore FOLDER --judge MODEL`), or compare "
    "without --judge",
}


def pair(candidate: Outcomes, baseline: Outcomes) -> Pairs:
    """Verdicts of two models on the same samples of a benchmark.

    Raises:
        DataError: If they were asked other samples, or otherwise; the message says how to mend it.
    """
    refuse_other_questions(candidate, baseline)
    return pairs_of(candidate.credits, baseline.credits, candidate.clusters, candidate.subsets)


def refuse_other_questions(candidate: Outcomes, baseline: Outcomes) -> None:
    """Raise `DataError` unless both models were asked the same samples in the same way."""
    names = f"{candidate.model} and {baseline.model}"
    for what in dict.fromkeys([*candidate.asked_as, *baseline.asked_as]):
        found, other = candidate.asked_as.get(what, ""), baseline.asked_as.get(what, "")
        if found != other:
            raise DataError(
                f"{candidate.benchmark}: {names} cannot be paired, they differ in {what}: "
                f"{_short(found)} and {_short(other)} ({candidate.path}, {baseline.path}). "
                f"{MENDS.get(what, 'Evaluate both in the same way')}."
            )
    if not np.array_equal(candidate.sample_ids, baseline.sample_ids):
        raise DataError(_other_samples(candidate, baseline))
    others = np.flatnonzero(candidate.prompts != baseline.prompts)
    if len(others):
        raise DataError(
            f"{candidate.benchmark}: {names} were asked {len(others):,} of "
            f"{len(candidate.prompts):,} samples with other prompts, first "
            f"{candidate.sample_ids[others[0]]}: chat template or context length differ. Evaluate "
            "both with `--no-chat-template` and the same `--max-length`."
        )


def _other_samples(candidate: Outcomes, baseline: Outcomes) -> str:
    first, second = set(candidate.sample_ids.tolist()), set(baseline.sample_ids.tolist())
    lacking, extra = sorted(second - first), sorted(first - second)
    parts = [
        f"{count:,} only {model} answered (first {ids[0]})"
        for count, model, ids in (
            (len(extra), candidate.model, extra),
            (len(lacking), baseline.model, lacking),
        )
        if ids
    ]
    return (
        f"{candidate.benchmark}: {candidate.model} answered {len(first):,} samples and "
        f"{baseline.model} {len(second):,}, and they are not the same: {'; '.join(parts)}. "
        "Evaluate both with the same `limit` and `subsets`."
    )


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:12]}…"
