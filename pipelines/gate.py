"""Decide whether a candidate is not worse than a baseline by more than a margin.

Non-inferiority: PASS if every lower bound lies above minus its margin (all must hold, so nothing is
corrected: an intersection-union test, Berger 1982); FAIL if some upper bound lies below minus its
margin, corrected for their number by Holm; else INCONCLUSIVE. Bounds are one-sided. Thus "no
significant difference" never passes by itself: a small test set is inconclusive, not harmless.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipelines.compare import draws_of
from pipelines.paired import Difference, Pairs, difference_of
from pipelines.paired_tests import (
    detectable,
    holm,
    interval_of,
    noise_of,
    p_above,
    p_below,
    samples_needed,
)

Verdict = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Rules:
    """What is decided by; see `Gate`.

    Attributes:
        alpha: One-sided error rate.
        min_samples: Fewer paired samples decide nothing.
        resamples: Of each bootstrap.
        seed: Of the bootstraps.
    """

    alpha: float = 0.05
    min_samples: int = 100
    resamples: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class Finding:
    """What one benchmark, or the average, says.

    Attributes:
        name: Of the benchmark, or "average".
        margin: Loss that is accepted, in (0, 1).
        difference: Of scores.
        low: One-sided lower bound of the difference.
        high: One-sided upper bound, not corrected.
        p_pass: Of a loss of the margin or more; PASS is below alpha.
        p_fail: Of a loss of less than the margin.
        p_fail_corrected: The same by Holm; FAIL is below alpha.
        detectable: Smallest loss beyond the margin that would have been seen with a chance of 80 %.
        samples_needed: Samples with which an equal candidate would pass with a chance of 80 %.
        noise: What the baseline differs from itself by, if it was repeated.
        verdict: Of this one.
        reason: Why, in one sentence.
    """

    name: str
    margin: float
    difference: Difference
    low: float
    high: float
    p_pass: float
    p_fail: float
    p_fail_corrected: float
    detectable: float
    samples_needed: int
    noise: float | None
    verdict: Verdict
    reason: str


def decide(
    pairs: Mapping[str, Pairs],
    margins: Mapping[str, float],
    rules: Rules,
    repeats: Mapping[str, Pairs] | None = None,
) -> list[Finding]:
    """Findings on benchmarks, in their order.

    Args:
        pairs: Name -> verdicts on both models' answers.
        margins: Name -> accepted loss, in (0, 1).
        rules: Error rate, least samples, bootstrap.
        repeats: Name -> verdicts on the baseline's answers and on those of its repetition.
    """
    found = [
        _measure(name, each, margins[name], rules, repeats[name] if repeats else None)
        for name, each in pairs.items()
    ]
    corrected = holm([each.p_fail for each in found])
    return [
        _judged(replace(each, p_fail_corrected=p), rules)
        for each, p in zip(found, corrected, strict=True)
    ]


def overall(findings: Sequence[Finding], breaches: Sequence[str] = ()) -> Verdict:
    """FAIL if anything fails or a limit is broken, PASS if everything passes.

    Args:
        findings: From `decide`.
        breaches: Limits on rates that are broken.

    Raises:
        ValueError: If there are no findings: nothing was shown then.
    """
    if not findings:
        raise ValueError("a gate without findings decides nothing")
    verdicts = {each.verdict for each in findings}
    if "fail" in verdicts or breaches:
        return "fail"
    return "inconclusive" if "inconclusive" in verdicts else "pass"


def _measure(name: str, pairs: Pairs, margin: float, rules: Rules, repeat: Pairs | None) -> Finding:
    difference = difference_of(pairs)
    draws = draws_of(name, pairs, rules.resamples, rules.seed)
    bounds = interval_of(difference, draws, 1 - 2 * rules.alpha)
    p_fail = p_below(difference, draws, -margin)
    return Finding(
        name=name,
        margin=margin,
        difference=difference,
        low=bounds.low,
        high=bounds.high,
        p_pass=p_above(difference, draws, -margin),
        p_fail=p_fail,
        p_fail_corrected=p_fail,
        detectable=detectable(difference, margin, rules.alpha),
        samples_needed=samples_needed(difference, margin, rules.alpha),
        noise=None if repeat is None else noise_of(difference_of(repeat)),
        verdict="inconclusive",
        reason="",
    )


def _judged(found: Finding, rules: Rules) -> Finding:
    n, margin = found.difference.num_samples, found.margin
    verdict: Verdict = "inconclusive"
    if n < rules.min_samples:
        reason = f"{n:,} samples are fewer than {rules.min_samples:,}"
    elif math.isnan(found.difference.standard_error):
        reason = "all samples of a subset share one source, so nothing says how sure its score is"
    elif found.noise is not None and found.noise >= margin:
        reason = (
            f"the baseline differs from itself by up to {found.noise * 100:.1f} points, so a "
            f"margin of {margin * 100:g} says nothing"
        )
    elif found.p_fail_corrected < rules.alpha and found.high < -margin:
        verdict, reason = "fail", f"the loss is surely more than {margin * 100:g} points"
    elif found.p_pass < rules.alpha and found.low > -margin:
        verdict, reason = "pass", f"the loss is surely less than {margin * 100:g} points"
    else:
        reason = _why_open(found)
    return replace(found, verdict=verdict, reason=reason)


def _why_open(found: Finding) -> str:
    n = found.difference.num_samples
    if found.samples_needed > n:
        return (
            f"too few samples for a margin of {found.margin * 100:g} points: an equal candidate "
            f"would pass 4 times in 5 with about {_rounded(found.samples_needed):,}"
        )
    return f"the loss may be smaller or larger than {found.margin * 100:g} points"


def _rounded(count: int) -> int:
    """Two digits: it is an estimate."""
    size = 10 ** max(0, len(str(count)) - 2)
    return -(-count // size) * size
