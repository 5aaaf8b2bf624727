"""What a score hides: samples without an answer, answers cut off, solved examples left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from evaluators.language_scores import Outcome, truncation_rate
from pipelines.language_scores import MISSING_ANSWERS


def lost_answers(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """How often no answer was found, and how often one was cut off, of every model.

    Args:
        outcomes: Model -> its outcomes on one benchmark.
    """
    return ", ".join(
        f"{model} {_abstain_rate(found):.1%} ({_cut_off(found)})"
        for model, found in outcomes.items()
    )


def lost_notes(benchmark: str, outcomes: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """What a reader of a benchmark's scores should know; nothing if nothing was lost."""
    notes: list[str] = []
    if any(_abstain_rate(found) or truncation_rate(found) > 0 for found in outcomes.values()):
        notes.append(
            f"note: {benchmark}: samples in which no answer was found, counted as wrong: "
            f"{lost_answers(outcomes)}."
        )
    num_dropped = sum(each.answer.num_dropped_shots for all_ in outcomes.values() for each in all_)
    if num_dropped:
        notes.append(
            f"note: {benchmark}: {num_dropped:,} solved examples were left out, because prompts "
            "were longer than the model's context."
        )
    if num_missing := sum(each.answer.is_missing for all_ in outcomes.values() for each in all_):
        notes.append(f"note: {benchmark}: {num_missing:,} {MISSING_ANSWERS}")
    return notes


def _abstain_rate(outcomes: Sequence[Outcome]) -> float:
    return fmean(each.verdict.extracted is None for each in outcomes)


def _cut_off(outcomes: Sequence[Outcome]) -> str:
    rate = truncation_rate(outcomes)
    return "how many were cut off is not known" if math.isnan(rate) else f"{rate:.1%} cut off"
