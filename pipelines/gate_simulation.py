"""The gate's own error rates: many invented candidates whose true loss is known, decided by it."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from pipelines.gate import Rules, Verdict, decide, overall
from pipelines.paired import Pairs
from pipelines.sheet import Cell, Line, Sheet, rich_table

FLIPPED = 0.05
"""Share of samples that each of two equally good models has right and the other wrong."""
ACCURACY = 0.7
"""Of the models."""


@dataclass(frozen=True)
class Case:
    """A kind of benchmark.

    Attributes:
        name: What it is.
        num_clusters: Sources of samples.
        cluster_size: Samples of each source.
        num_strata: Subsets that count the same; sources are spread over them.
        num_benchmarks: So many of the same kind, all of which must hold.
        correlation: Of flips within a source, in [0, 1).
        margin: Loss that is accepted.
    """

    name: str
    num_clusters: int
    cluster_size: int = 1
    num_strata: int = 1
    num_benchmarks: int = 1
    correlation: float = 0.0
    margin: float = 0.03


CASES = (
    Case("1,319 independent samples (as GSM8K)", 1319),
    Case("9 subsets of 250 samples, macro", 2250, num_strata=9, margin=0.025),
    Case("525 problems of 3 samples (as We-Math)", 525, 3, correlation=0.3),
    Case("20 sources of 50 samples", 20, 50, correlation=0.05, margin=0.06),
    Case("7 sources of 70 samples (as fonts)", 7, 70, correlation=0.05, margin=0.10),
    Case("3 benchmarks of 1,000 samples at once", 1000, num_benchmarks=3, margin=0.04),
)


@dataclass(frozen=True)
class Rates:
    """How often each verdict came.

    Attributes:
        case: The kind of benchmark.
        loss: True loss, as a multiple of the margin.
        num_losing: Of the benchmarks; the others lose nothing.
        repeats: How many candidates were invented.
        verdicts: Verdict -> share.
    """

    case: Case
    loss: float
    num_losing: int
    repeats: int
    verdicts: Mapping[Verdict, float]

    def error(self, verdict: Verdict) -> float:
        """Standard error of a verdict's share."""
        share = self.verdicts[verdict]
        return math.sqrt(max(share * (1 - share), 0.0) / self.repeats)


def error_rates(
    case: Case,
    loss: float,
    repeats: int,
    rules: Rules,
    seed: int = 0,
    num_losing: int | None = None,
) -> Rates:
    """Decide on ``repeats`` invented candidates of a known true loss.

    Args:
        case: The kind of benchmark.
        loss: True loss as a multiple of the margin, on ``num_losing`` of the benchmarks; none on
            the others.
        repeats: How many.
        rules: Of the gate; its seed is replaced.
        seed: Of everything.
        num_losing: All benchmarks if None.
    """
    names = [f"benchmark {number}" for number in range(case.num_benchmarks)]
    losing = names if num_losing is None else names[:num_losing]
    key = [seed, zlib.crc32(case.name.encode()), round(loss * 1000), len(losing)]
    generator = np.random.default_rng(key)
    counts: Counter[Verdict] = Counter()
    for number in range(repeats):
        pairs = {
            name: invented_pairs(case, case.margin * loss if name in losing else 0.0, generator)
            for name in names
        }
        own = Rules(rules.alpha, rules.min_samples, rules.resamples, number)
        counts[overall(decide(pairs, dict.fromkeys(names, case.margin), own))] += 1
    verdicts: list[Verdict] = ["pass", "fail", "inconclusive"]
    shares: dict[Verdict, float] = {each: counts[each] / repeats for each in verdicts}
    return Rates(case, loss, len(losing), repeats, shares)


def invented_pairs(case: Case, loss: float, generator: np.random.Generator) -> Pairs:
    """Verdicts of two models whose scores truly differ by ``loss``.

    Each source draws its own chances to win, lose and stay, from a Dirichlet distribution around
    the true ones, whose spread gives flips of a source the correlation that the case wants.
    """
    chances = np.array([FLIPPED, FLIPPED + loss, 1 - 2 * FLIPPED - loss])
    if case.correlation > 0:
        spread = (1 - case.correlation) / case.correlation
        of_source = generator.dirichlet(chances * spread, size=case.num_clusters)
    else:
        of_source = np.broadcast_to(chances, (case.num_clusters, 3))
    cluster = np.repeat(np.arange(case.num_clusters), case.cluster_size)
    drawn = generator.random(len(cluster))
    limits = np.cumsum(of_source, axis=1)[cluster]
    won, lost = drawn < limits[:, 0], (drawn >= limits[:, 0]) & (drawn < limits[:, 1])
    both = ~won & ~lost & (generator.random(len(cluster)) < ACCURACY)
    strata = cluster % case.num_strata
    weights = np.full(case.num_strata, 1 / case.num_strata)
    return Pairs(won | both, lost | both, strata, cluster, weights)


def rates_sheet(rates: Sequence[Rates], rules: Rules) -> Sheet:
    """A line per kind of benchmark and true loss."""
    lines = tuple(
        Line(
            each.case.name if number == 0 or rates[number - 1].case != each.case else "",
            (
                Cell(_loss(each)),
                *(_share(each, verdict) for verdict in ("pass", "fail", "inconclusive")),
            ),
            opens_group=number > 0 and rates[number - 1].case != each.case,
        )
        for number, each in enumerate(rates)
    )
    repeats = rates[0].repeats if rates else 0
    caption = (
        f"Share of {repeats:,} invented candidates in %, ± standard error, at alpha = "
        f"{rules.alpha:g}; equal models disagree on {2 * FLIPPED * 100:g} % of samples. Promised: "
        "at no loss hardly any FAIL; at a loss of exactly the margin at most alpha PASS, and at "
        "most alpha FAIL."
    )
    columns = ("true loss", "pass", "fail", "inconclusive")
    return Sheet("The gate's error rates, simulated", "benchmark", columns, lines, caption)


def print_error_rates(repeats: int, console: Console) -> None:
    """Simulate every case at no loss, at the margin and at twice the margin, and print it."""
    rules = Rules(resamples=1000)
    rates: list[Rates] = []
    for case in CASES:
        rates += [error_rates(case, loss, repeats, rules) for loss in (0, 1, 2)]
        if case.num_benchmarks > 1:
            rates.append(error_rates(case, 1, repeats, rules, num_losing=1))
        console.print(f"{case.name}: done", highlight=False)
    console.print(rich_table(rates_sheet(rates, rules), console.width))


def _loss(rates: Rates) -> str:
    points = f"{rates.case.margin * rates.loss * 100:g} points"
    words: dict[float, str] = {0: "none", 1: f"the margin, {points}", 2: f"twice it, {points}"}
    said = words.get(rates.loss, points)
    return said if rates.num_losing == rates.case.num_benchmarks else f"{said}, on one"


def _share(rates: Rates, verdict: Verdict) -> Cell:
    return Cell(f"{rates.verdicts[verdict] * 100:.1f}", f"{rates.error(verdict) * 100:.1f}")
