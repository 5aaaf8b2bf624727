"""From verdicts to the scores of a benchmark: its subsets, its groups, and their averages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evaluators.answers import Answer, FinishReason
from evaluators.profiles import Profile, ScorerName
from evaluators.samples import Sample
from evaluators.scores import Score, score_accuracy
from nan_merge.errors import EvaluationError

METRIC = "accuracy"


@dataclass(frozen=True)
class ScoredAnswer:
    """One answer with its verdict.

    Attributes:
        sample_id: The sample's.
        cluster_id: The sample's.
        subset: The sample's.
        extracted: What the scorer read as the answer; None for an abstention.
        is_correct: Whether it is right.
        finish_reason: Of the answer; "length": it was cut off.
    """

    sample_id: str
    cluster_id: str
    subset: str
    extracted: str | None
    is_correct: bool
    finish_reason: FinishReason


@dataclass(frozen=True)
class ScoreRow:
    """The score of a subset, or an average over several.

    Attributes:
        name: Of the subset or group; that of the benchmark for the average over all subsets.
        score: Share of right answers, its standard error, and how many samples it is of.
        abstain_rate: Share of answers in which none was found, weighted as the score is.
        truncation_rate: Share of answers that were cut off, weighted as the score is.
    """

    name: str
    score: Score
    abstain_rate: float
    truncation_rate: float


@dataclass(frozen=True)
class BenchmarkScores:
    """All scores of one model on one benchmark.

    Attributes:
        subsets: One row per subset that has answers, in the profile's order.
        averages: The benchmark's own first, then its groups, then the mean over samples.
        refused: Name of an average that cannot be formed -> why.
    """

    subsets: tuple[ScoreRow, ...]
    averages: tuple[ScoreRow, ...]
    refused: Mapping[str, str]


def score_answers(
    profile: Profile, samples: Sequence[Sample], answers: Sequence[Answer], scorer: ScorerName
) -> list[ScoredAnswer]:
    """Judge answers, in the order of the samples; samples without an answer are left out.

    Raises:
        EvaluationError: If an answer belongs to none of the samples, or one has two.
    """
    by_id = {answer.sample_id: answer for answer in answers}
    if len(by_id) < len(answers):
        raise EvaluationError(f"{profile.benchmark}: some samples have two answers")
    strangers = by_id.keys() - {sample.id for sample in samples}
    if strangers:
        raise EvaluationError(
            f"{profile.benchmark}: {len(strangers)} answers belong to no sample, e.g. "
            f"{min(strangers)}. They were made from other data; evaluate again."
        )
    judge, scored = profile.scorers[scorer], list[ScoredAnswer]()
    for sample in samples:
        answer = by_id.get(sample.id)
        if answer is not None:
            verdict = judge(sample, answer)
            scored.append(
                ScoredAnswer(
                    sample.id,
                    sample.cluster_id,
                    sample.subset,
                    verdict.extracted,
                    verdict.is_correct,
                    answer.finish_reason,
                )
            )
    return scored


def score_benchmark(profile: Profile, scored: Sequence[ScoredAnswer]) -> BenchmarkScores:
    """Scores of subsets, groups and the whole, as the profile wants them averaged.

    An average is the unweighted mean over its subsets (macro), as upstream; NAME-micro is the mean
    over samples. If a subset has no answers, the averages that it belongs to are refused.

    Raises:
        ValueError: If there are no answers.
    """
    if not scored:
        raise ValueError(f"{profile.benchmark}: there are no answers to score")
    by_subset: dict[str, list[ScoredAnswer]] = {name: [] for name in profile.subsets}
    for each in scored:
        by_subset[each.subset].append(each)
    rows = {name: _row(name, found) for name, found in by_subset.items() if found}
    averages: list[ScoreRow] = []
    refused: dict[str, str] = {}
    for name, subsets in {profile.benchmark: profile.subsets, **profile.groups}.items():
        missing = [subset for subset in subsets if subset not in rows]
        if missing:
            refused[name] = _refusal(missing, len(subsets))
        else:
            averages.append(_macro(name, [rows[subset] for subset in subsets]))
    micro = f"{profile.benchmark}-micro"
    if profile.benchmark in refused:
        refused[micro] = refused[profile.benchmark]
    else:
        averages.append(_row(micro, scored))
    return BenchmarkScores(tuple(rows.values()), tuple(averages), refused)


def _row(name: str, scored: Sequence[ScoredAnswer]) -> ScoreRow:
    num_abstained = sum(each.extracted is None for each in scored)
    num_cut_off = sum(each.finish_reason == "length" for each in scored)
    return ScoreRow(
        name,
        score_accuracy(name, scored, METRIC),
        num_abstained / len(scored),
        num_cut_off / len(scored),
    )


def _macro(name: str, rows: Sequence[ScoreRow]) -> ScoreRow:
    """Mean over subsets, which are strata: for k of them the error is sqrt(sum_s e_s^2) / k.

    Clusters lie within subsets, so the subsets' errors are independent (Cochran, Sampling
    Techniques, chapter 5, with equal weights). nan if one subset has a single cluster.
    """

    def mean(value: Callable[[ScoreRow], float]) -> float:
        return math.fsum(map(value, rows)) / len(rows)

    squares = math.fsum(row.score.standard_error**2 for row in rows)
    score = Score(
        benchmark=name,
        metric=METRIC,
        value=mean(lambda row: row.score.value),
        standard_error=math.sqrt(squares) / len(rows),
        num_samples=sum(row.score.num_samples for row in rows),
    )
    abstained = mean(lambda row: row.abstain_rate)
    return ScoreRow(name, score, abstained, mean(lambda row: row.truncation_rate))


def _refusal(missing: Sequence[str], num_subsets: int) -> str:
    names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    return (
        f"{len(missing)} of {num_subsets} subsets have no answers ({names}); without them the "
        "average would be another number"
    )
