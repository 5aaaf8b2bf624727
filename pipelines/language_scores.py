"""Scores of records of answers: derived whenever they are asked for, never stored with answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evaluators.language_scores import (
    BenchmarkScores,
    Outcome,
    judge,
    score_benchmark,
)
from evaluators.profiles import ScorerName
from evaluators.scores import Score
from nan_merge.errors import DataError
from pipelines.imported import imported_benchmark
from pipelines.language_benchmarks import OpenBenchmark, open_benchmark
from pipelines.language_config import BenchmarkSpec
from pipelines.language_records import OWN_SOURCE, Record, RecordInfo
from pipelines.sheet import MISSING, UNKNOWN_ERRORS, Cell, Line, Sheet, spread_in_percent

MISSING_ANSWERS = (
    "samples have no answer at all and count as wrong: the prompt is longer than the model's "
    "context even without solved examples, or the model's log-probabilities are not numbers."
)


@dataclass(frozen=True)
class ScoredRecord:
    """One record of answers and what it is worth by one scorer.

    Attributes:
        record: The answers.
        scores: What they are worth.
        judge: Who read the answers that the rules leave open; None without a judge.
    """

    record: Record
    scores: BenchmarkScores
    judge: RecordInfo | None = None

    def as_json(self) -> dict[str, Any]:
        """Everything that `scores.json` says of it; a number that is not known is null."""
        info, scores = self.record.info, self.scores
        return {
            "model": info.model,
            "benchmark": scores.benchmark,
            "profile": scores.profile,
            "scorer": scores.scorer,
            "source": info.source,
            "engine": info.engine,
            "chat_template": info.uses_chat_template,
            "key": info.key,
            "predictions": self.record.path.name,
            "average": _plain(scores.average),
            "micro": _plain(scores.micro),
            "groups": {name: _plain(score) for name, score in scores.groups.items()},
            "subsets": {name: _plain(score) for name, score in scores.subsets.items()},
            "measures": {name: _plain(score) for name, score in scores.measures.items()},
            "missing_subsets": list(scores.missing_subsets),
            "abstain_rate": scores.abstain_rate,
            "truncation_rate": None
            if math.isnan(scores.truncation_rate)
            else scores.truncation_rate,
            "dropped_shots": scores.num_dropped_shots,
            "missing_answers": scores.num_missing,
            "judge": self.judge
            and {key: getattr(self.judge, key) for key in ("model", "folder", "key", "engine")},
        }


def outcomes_of(
    record: Record, benchmark: OpenBenchmark, scorer: ScorerName, asked: frozenset[str] | None
) -> list[Outcome]:
    """Verdicts on the answers of a record.

    Args:
        record: The answers.
        benchmark: The samples that they answer.
        scorer: Whose verdicts.
        asked: Only these samples; all that the record answers if None.

    Raises:
        DataError: If the answers are damaged, or the data is not what was asked.
    """
    if record.info.made_of.get("data") != benchmark.digest:
        raise DataError(
            f"{benchmark.folder} is not the data that {record.path} answers: its content has "
            "changed. Name the folder with the data that was asked, or evaluate again."
        )
    answers = record.answers()
    if asked is not None:
        answers = [each for each in answers if each.sample_id in asked]
    if not answers:
        raise DataError(f"{record.path} holds no answers. Run the evaluation again.")
    return judge(benchmark.profile, benchmark.samples, answers, scorer)


def score_record(
    record: Record,
    benchmark: OpenBenchmark,
    scorer: ScorerName,
    asked: frozenset[str] | None = None,
) -> ScoredRecord:
    """Score a record; for arguments and errors see `outcomes_of`."""
    outcomes = outcomes_of(record, benchmark, scorer, asked)
    return ScoredRecord(record, score_benchmark(benchmark.profile, outcomes, scorer))


def benchmark_of(record: Record, data: Path | None = None) -> OpenBenchmark:
    """Open the benchmark that a record answers.

    Args:
        record: The answers.
        data: Its data's folder; where it lay when it was asked, if None.

    Raises:
        DataError: If the data is missing or damaged.
    """
    info = record.info
    if info.source != OWN_SOURCE:
        return imported_benchmark(record)
    own = info.benchmark.endswith((".yaml", ".yml"))
    return open_benchmark(
        BenchmarkSpec(
            name=info.benchmark,
            profile=None if own else info.profile,
            data=data or Path(info.data),
            chat_template=info.uses_chat_template,
        )
    )


def first_scorer(benchmark: OpenBenchmark) -> ScorerName:
    """The scorer that tables show."""
    return next(iter(benchmark.profile.scorers))


def scores_sheet(scored: Sequence[ScoredRecord], title: str) -> Sheet:
    """A line per record and scorer: score, micro average, n, abstentions, truncations."""
    models = len({each.record.info.model for each in scored}) > 1
    lines = tuple(
        Line(
            _label(each, models),
            _cells(each.scores),
            opens_group=place > 0 and _opens(scored, place),
        )
        for place, each in enumerate(scored)
    )
    caption = (
        "Accuracy in %; score: unweighted mean over all subsets; micro: mean over samples; ±: one "
        "standard error over clusters of samples; abstained: no answer was found in it, counted "
        "as wrong; truncated: cut off at the most tokens."
    ) + _about_errors(lines)
    columns = ("score", "micro", "n", "abstained", "truncated")
    return Sheet(title, "benchmark", columns, lines, caption)


def groups_sheet(scored: Sequence[ScoredRecord]) -> Sheet | None:
    """A line per group of subsets, and per subset where the average is refused."""
    lines: list[Line] = []
    for each in scored:
        shown = each.scores.groups if each.scores.average is not None else each.scores.subsets
        for number, (name, score) in enumerate(shown.items()):
            cells = (_score_cell(score), Cell(f"{score.num_samples:,}"))
            lines.append(Line(f"{name} ({each.scores.scorer})", cells, number == 0))
    if not lines:
        return None
    caption = "Accuracy in %; of a group, the unweighted mean over its subsets; ±: standard error."
    caption += _about_errors(lines)
    return Sheet("Groups", "group", ("score", "n"), tuple(lines), caption)


def measures_sheet(scored: Sequence[ScoredRecord]) -> Sheet | None:
    """A line per score that benchmarks have of their own; None if none has any."""
    lines = [
        Line(
            # With a judge the benchmark's name would be that of the scores without one.
            f"{each.scores.profile if each.judge else each.scores.benchmark}: {name} "
            f"({each.scores.scorer})",
            (_score_cell(score), Cell(f"{score.num_samples:,}")),
            number == 0,
        )
        for each in scored
        for number, (name, score) in enumerate(each.scores.measures.items())
    ]
    if not lines:
        return None
    caption = (
        "In %: accuracy on a part of a benchmark, or what its authors measure (docs/evaluation.md);"
        " ±: standard error."
    ) + _about_errors(lines)
    return Sheet("Parts and measures", "of", ("score", "n"), tuple(lines), caption)


def notes_of(scored: Sequence[ScoredRecord]) -> list[str]:
    """What a reader of the scores should know."""
    notes: list[str] = []
    for each in scored:
        scores, name = each.scores, f"{each.scores.benchmark}/{each.scores.profile}"
        if scores.missing_subsets:
            missing = ", ".join(scores.missing_subsets[:3])
            more = len(scores.missing_subsets) - 3
            notes.append(
                f"note: {name}: no average, because {len(scores.missing_subsets)} subsets were "
                f"not asked ({missing}{f' and {more} more' if more > 0 else ''})."
            )
        if scores.num_dropped_shots:
            notes.append(
                f"note: {name}: {scores.num_dropped_shots:,} solved examples were left out, "
                "because prompts were longer than the model's context."
            )
        if scores.num_missing:
            notes.append(f"note: {name}: {scores.num_missing:,} {MISSING_ANSWERS}")
    return list(dict.fromkeys(notes))


def scores_json(scored: Sequence[ScoredRecord]) -> list[dict[str, Any]]:
    """The content of `scores.json`."""
    return [each.as_json() for each in scored]


def _plain(score: Score | None) -> dict[str, Any] | None:
    if score is None:
        return None
    content = asdict(score)
    return {key: None if value != value else value for key, value in content.items()}


def _label(each: ScoredRecord, with_model: bool) -> str:
    info, scores = each.record.info, each.scores
    label = f"{scores.benchmark} {scores.profile} ({scores.scorer})"
    return f"{info.model}: {label}" if with_model else label


def _opens(scored: Sequence[ScoredRecord], place: int) -> bool:
    here, before = scored[place], scored[place - 1]
    return here.record.path != before.record.path


def _cells(scores: BenchmarkScores) -> tuple[Cell, ...]:
    truncated = scores.truncation_rate
    average = _score_cell(scores.average) if scores.average is not None else Cell(MISSING)
    return (
        average,
        _score_cell(scores.micro),
        Cell(f"{scores.micro.num_samples:,}"),
        Cell(f"{scores.abstain_rate * 100:.1f}"),
        Cell(MISSING if math.isnan(truncated) else f"{truncated * 100:.1f}"),
    )


def _about_errors(lines: Sequence[Line]) -> str:
    is_unknown = any(cell.spread == MISSING for line in lines for cell in line.cells)
    return UNKNOWN_ERRORS if is_unknown else ""


def _score_cell(score: Score) -> Cell:
    if math.isnan(score.value):
        return Cell(MISSING)
    return Cell(f"{score.value * 100:.1f}", spread_in_percent(score.standard_error))
