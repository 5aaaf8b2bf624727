"""The gate promises error rates; thousands of invented candidates hold it to them."""

from __future__ import annotations

from functools import cache
from io import StringIO

import pytest
from rich.console import Console

from pipelines import gate_simulation
from pipelines.gate import Rules
from pipelines.gate_simulation import CASES, Case

RULES = Rules(alpha=0.05, resamples=1000)
REPEATS = 400
# Of 400 candidates at a rate of exactly 5 %, more than 8.5 % come once in 500 tests.
MOST = 0.085

error_rates = cache(gate_simulation.error_rates)


def of_kind(start: str) -> Case:
    return next(case for case in CASES if case.name.startswith(start))


@pytest.mark.parametrize("start", ["1,319 independent", "525 problems", "20 sources", "7 sources"])
def test_a_loss_of_exactly_the_margin_seldom_passes_and_seldom_fails(start: str):
    rates = error_rates(of_kind(start), 1, REPEATS, RULES)
    assert rates.verdicts["pass"] <= MOST
    assert rates.verdicts["fail"] <= MOST


def test_the_rate_of_independent_samples_is_near_alpha_and_not_merely_below():
    rates = error_rates(of_kind("1,319 independent"), 1, REPEATS, RULES)
    assert rates.verdicts["pass"] >= 0.02
    assert rates.verdicts["fail"] >= 0.02


def test_alpha_sets_the_rate():
    rates = error_rates(of_kind("1,319 independent"), 1, REPEATS, Rules(alpha=0.2, resamples=1000))
    assert 0.14 <= rates.verdicts["pass"] <= 0.26


@pytest.mark.parametrize("start", ["1,319 independent", "525 problems", "20 sources", "7 sources"])
def test_an_equal_candidate_never_fails_and_mostly_passes(start: str):
    rates = error_rates(of_kind(start), 0, 200, RULES)
    assert rates.verdicts["fail"] <= 0.01
    assert rates.verdicts["pass"] >= 0.6


def test_twice_the_margin_mostly_fails_and_never_passes():
    rates = error_rates(of_kind("1,319 independent"), 2, 200, RULES)
    assert rates.verdicts["pass"] == 0
    assert rates.verdicts["fail"] >= 0.8


def test_macro_averages_keep_the_rate():
    case = Case("5 subsets of 120", 600, num_strata=5)
    rates = error_rates(case, 1, 250, RULES)
    assert rates.verdicts["pass"] <= 0.1
    assert rates.verdicts["fail"] <= 0.1


def test_benchmarks_together_keep_the_rate():
    case = Case("3 benchmarks", 300, num_benchmarks=3, margin=0.06)
    together = error_rates(case, 1, 250, RULES)
    assert together.verdicts["fail"] <= 0.1  # by Holm; uncorrected it would be about 14 %
    one = error_rates(case, 1, 250, RULES, num_losing=1)
    assert one.verdicts["pass"] <= 0.1


def test_few_samples_decide_nothing_however_few_flip():
    case = Case("60 samples", 60, margin=0.03)
    rates = error_rates(case, 0, 50, Rules(min_samples=1, resamples=1000))
    assert rates.verdicts["pass"] <= 0.1


def test_a_command_prints_the_rates(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gate_simulation, "CASES", (of_kind("7 sources"),))
    out = StringIO()
    gate_simulation.print_error_rates(100, Console(file=out, width=120))
    text = out.getvalue()
    assert "7 sources of 70 samples (as fonts)" in text
    assert "the margin, 10 points" in text and "twice it, 20 points" in text
