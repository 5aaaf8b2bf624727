"""A comparison as tables, as JSON, and as lists of samples that flipped."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pipelines.compare import Compared, ComparedModel, Comparison
from pipelines.flips import Flip
from pipelines.sheet import MISSING, Cell, Line, Sheet

SIGNIFICANT = 0.05


def summary_sheet(comparison: Comparison) -> Sheet:
    """A line per model: average, difference with interval and p, samples, rank, normalised."""
    lines: list[Line] = []
    for model in comparison.models:
        cells = (
            Cell(_average(model, comparison)),
            *_difference_cells(model, comparison),
            Cell(MISSING if model.mean_rank is None else f"{model.mean_rank:.1f}"),
            Cell(MISSING if model.normalised is None else f"{model.normalised * 100:.1f}"),
        )
        lines.append(Line(model.model, cells))
    partly = " or more right" if _is_graded(comparison) else ""
    columns = ("average", "difference", "95 % interval", "p", "won:lost", "rank", "normalised")
    caption = (
        f"Average over {len(comparison.benchmarks)} benchmarks in %, and its difference to "
        f"{comparison.baseline} in points, paired by sample. Interval: the outer bounds of a "
        f"bootstrap over sources ({comparison.resamples:,} resamples, seed {comparison.seed}) and "
        "a score interval. p: of no difference. won:lost: samples that only this model, or only "
        f"the baseline, has right{partly}. rank: mean over benchmarks. normalised: mean share, in "
        "%, of the individual model's score."
    )
    title = f"Compared with {comparison.baseline}"
    return Sheet(title, "model", columns, tuple(lines), caption)


def benchmarks_sheet(comparison: Comparison) -> Sheet:
    """A line per model: the difference on each benchmark, with the samples won and lost."""
    lines = tuple(
        Line(model.model, tuple(_benchmark_cell(model, name) for name in comparison.benchmarks))
        for model in comparison.models
        if model.compared
    )
    caption = (
        f"Difference to {comparison.baseline} in points, and samples won:lost. *: "
        f"p < {SIGNIFICANT} after Holm's correction over the model's benchmarks "
        f"({', '.join(_tests(comparison))})."
    )
    return Sheet("By benchmark", "model", comparison.benchmarks, lines, caption)


def problems_sheet(comparison: Comparison) -> Sheet | None:
    """A line per model and score of problems; None if no benchmark has such scores."""
    lines = tuple(
        Line(
            f"{model.model}, {name}",
            (
                Cell(f"{found.difference.candidate * 100:.1f}"),
                Cell(f"{found.difference.baseline * 100:.1f}"),
                Cell(points(found.difference.value, 2)),
                Cell(_interval(found)),
                Cell(p_text(found.p_corrected)),
                Cell(f"{found.difference.num_won}:{found.difference.num_lost}"),
            ),
            opens_group=place == 0,
        )
        for model in comparison.models
        for place, (name, found) in enumerate(model.by_problem.items())
    )
    if not lines:
        return None
    columns = ("score", "baseline", "difference", "95 % interval", "p", "won:lost")
    caption = (
        "Scores that all answers to a problem make together, in %, and their difference to "
        f"{comparison.baseline} in points, paired by problem; they are in no average. p: of no "
        "difference, after Holm's correction over the model's scores. won:lost: problems."
    )
    return Sheet("Scores of problems", "model and score", columns, lines, caption)


def sheets_of(comparison: Comparison) -> list[Sheet]:
    """Every table of a comparison, in order."""
    found = [summary_sheet(comparison), benchmarks_sheet(comparison)]
    problems = problems_sheet(comparison)
    return found if problems is None else [*found, problems]


def flips_lines(flips: Sequence[Flip], comparison: Comparison, limit: int) -> list[str]:
    """What a person reads of the samples that flipped, and how to look at each."""
    lines: list[str] = []
    by_model: dict[str, list[Flip]] = {}
    for flip in flips:
        by_model.setdefault(flip.model, []).append(flip)
    for model, found in by_model.items():
        won = sum(each.won for each in found)
        lines.append(f"\n{model}: {won} won, {len(found) - won} lost")
        lines += [
            f"  {'won ' if each.won else 'lost'}  {each.sample_id}   gold {_short(each.gold)}, "
            f"now {_short(each.answer)}, before {_short(each.baseline_answer)}"
            for each in found[:limit]
        ]
        if len(found) > limit:
            lines.append(f"  ... and {len(found) - limit} more")
        lines.append(
            "  nan-merge predictions show "
            f"{shlex.quote(str(comparison.places[model]))} "
            f"--benchmark {shlex.quote(found[0].benchmark)} "
            f"--sample {shlex.quote(found[0].sample_id)}"
        )
    return lines or ["No sample flipped."]


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Everything but the samples; differences are in [-1, 1]."""
    return {
        "baseline": comparison.baseline,
        "benchmarks": list(comparison.benchmarks),
        "resamples": comparison.resamples,
        "seed": comparison.seed,
        "models": [_model_json(model) for model in comparison.models],
        "notes": list(comparison.notes),
    }


def _model_json(model: ComparedModel) -> dict[str, Any]:
    return {
        "model": model.model,
        "kind": model.kind,
        "scores": dict(model.scores),
        "mean_rank": model.mean_rank,
        "normalised": model.normalised,
        "average": None if model.average is None else compared_json(model.average),
        "benchmarks": {name: compared_json(each) for name, each in model.compared.items()},
        "by_problem": {name: compared_json(each) for name, each in model.by_problem.items()},
    }


def compared_json(found: Compared) -> dict[str, Any]:
    """One comparison; a number that is not known is null."""
    content: dict[str, Any] = {
        **asdict(found.difference),
        "low": found.interval.low,
        "high": found.interval.high,
        "p_value": found.p_value,
        "p_corrected": found.p_corrected,
        "test": found.test,
    }
    return {key: None if value != value else value for key, value in content.items()}


def points(value: float, decimals: int = 1) -> str:
    """A difference in percentage points, with its sign; no "-0.0"."""
    return f"{round(value * 100, decimals) + 0.0:+.{decimals}f}"


def p_text(p_value: float) -> str:
    """A p value as tables show it."""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _difference_cells(model: ComparedModel, comparison: Comparison) -> tuple[Cell, ...]:
    if model.model == comparison.baseline:
        return (Cell("baseline"), Cell(""), Cell(""), Cell(""))
    if model.average is None:
        return (Cell(MISSING),) * 4
    found = model.average
    return (
        Cell(points(found.difference.value, 2)),
        Cell(_interval(found)),
        Cell(p_text(found.p_value)),
        Cell(f"{found.difference.num_won}:{found.difference.num_lost}"),
    )


def _interval(found: Compared) -> str:
    return f"{points(found.interval.low)} to {points(found.interval.high)}"


def _benchmark_cell(model: ComparedModel, benchmark: str) -> Cell:
    found = model.compared.get(benchmark)
    if found is None:
        return Cell(MISSING)
    difference = found.difference
    is_sure = found.p_corrected < SIGNIFICANT
    below = f"{difference.num_won}:{difference.num_lost}"
    return Cell(points(difference.value), best=is_sure, below=below)


def _average(model: ComparedModel, comparison: Comparison) -> str:
    found = [model.scores[name] for name in comparison.benchmarks if name in model.scores]
    if len(found) < len(comparison.benchmarks):
        return MISSING
    return f"{math.fsum(found) / len(found) * 100:.1f}"


def _is_graded(comparison: Comparison) -> bool:
    found = (each for model in comparison.models for each in model.compared.values())
    return any(each.difference.is_graded for each in found)


def _tests(comparison: Comparison) -> list[str]:
    names = [each.test for model in comparison.models for each in model.compared.values()]
    return [name for name in dict.fromkeys(names) if name != "no sample flipped"]


def _short(text: str | None) -> str:
    if text is None:
        return "(none)"
    line = " ".join(text.split())
    return line if len(line) <= 40 else f"{line[:37]}..."
