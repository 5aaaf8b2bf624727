"""The section `gate:` of a run file: what is compared with what, and how much may be lost."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from nan_merge.schema import StrictModel

SMALLEST_MARGIN = 0.05
"""In points. What is below was meant as a share of 1, or as no margin at all."""


def _margin(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if value <= 0:
        raise ValueError(
            f"found {value}, expected points above 0: with no margin only a candidate that is "
            "surely better passes, and one that is equal never does. Say how much loss you would "
            "accept, e.g. 1.0"
        )
    if value < SMALLEST_MARGIN:
        raise ValueError(
            f"found {value}, expected percentage points: {value} of a point is less than any "
            f"benchmark can tell. For {value * 100:g} points write {value * 100:g}"
        )
    return value


Margin = Annotated[float, BeforeValidator(_margin), Field(lt=100)]


class Gate(StrictModel):
    """Whether a candidate may take a baseline's place."""

    candidate: str | None = None
    """The new model: a model of this run, or `FOLDER:MODEL`."""
    baseline: str | None = None
    """The model that it must not fall behind: a model of this run, or `FOLDER:MODEL`. A folder
    alone means its model of the candidate's name, or its only model."""
    margin: Margin | None = None
    """Loss that is accepted on each benchmark and on the average, in percentage points."""
    margins: dict[str, Margin] = Field(default_factory=dict[str, Margin])
    """Benchmark, or `average` -> its own margin."""
    decide_on: Literal["benchmarks", "average", "both"] = "benchmarks"
    """What must hold: every benchmark, the unweighted average over them, or both."""
    benchmarks: tuple[str, ...] = ()
    """Only these benchmarks; all of the baseline's if absent. `wemath: score (strict)` means a
    score that several answers make together, paired by problem."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Chance that is accepted of passing a loss of the margin, and of failing a smaller one."""
    min_samples: int = Field(default=100, ge=1)
    """With fewer paired samples a benchmark decides nothing."""
    max_abstained: float | None = Field(default=None, ge=0, le=100)
    """Most of the candidate's answers in which none was found, in percent."""
    max_truncated: float | None = Field(default=None, ge=0, le=100)
    """Most of the candidate's answers that were cut off, in percent."""
    max_abstained_rise: float | None = Field(default=5.0, ge=0, le=100)
    """Most that abstentions may rise over the baseline's, in points; null for any."""
    max_truncated_rise: float | None = Field(default=5.0, ge=0, le=100)
    """Most that truncations may rise over the baseline's, in points; null for any."""
    repeat: str | None = None
    """The baseline, evaluated a second time: `FOLDER:MODEL`. What flips between the two is the
    engine's noise, and a margin within it decides nothing."""
    mark_passed: bool = False
    """Give a candidate that passes the alias `passed` in MLflow's registry; it must be a merge of
    a run that MLflow holds."""
    resamples: int = Field(default=10_000, ge=1000, le=1_000_000)
    """Of each bootstrap."""
    seed: int = Field(default=0, ge=0)
    """Of the bootstraps."""
