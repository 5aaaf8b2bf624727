"""From the answers of a language model to the scores of a benchmark: averages, groups, rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evaluators.answers import Answer
from evaluators.profiles import Profile, ScorerName, Verdict
from evaluators.samples import Sample
from evaluators.scores import Score, score_accuracy, score_weighted
from nan_merge.errors import ConfigError

METRIC = "accuracy"


@dataclass(frozen=True)
class Outcome:
    """One sample, its answer and the verdict on it.

    Attributes:
        sample: What was asked.
        answer: What was answered.
        verdict: What the scorer made of it.
    """

    sample: Sample
    answer: Answer
    verdict: Verdict

    @property
    def sample_id(self) -> str:
        """The sample's id."""
        return self.sample.id

    @property
    def cluster_id(self) -> str:
        """The sample's cluster."""
        return self.sample.cluster_id

    @property
    def is_correct(self) -> bool:
        """Whether the answer is right."""
        return self.verdict.is_correct

    @property
    def credit(self) -> float:
        """What the answer adds to a score, in [0, 1]."""
        given = self.verdict.credit
        return float(self.is_correct) if given is None else given


@dataclass(frozen=True)
class BenchmarkScores:
    """What one model reached on one benchmark.

    Attributes:
        benchmark: Its name.
        profile: The profile's name.
        scorer: Which of the profile's scorers.
        average: Unweighted mean over all subsets; None if a subset has no answers.
        micro: Mean over samples.
        groups: Unweighted means over the subsets of a group; only groups that are complete.
        subsets: Of each subset that has answers.
        missing_subsets: Subsets without answers.
        abstain_rate: Share of samples in whose answer the scorer found none.
        truncation_rate: Share of answers that were cut off at their most tokens; NaN if that is not
            known of every answer.
        num_dropped_shots: Solved examples left out of prompts, in all.
        num_missing: Samples to which the model said nothing; see `Answer.is_missing`.
        measures: The profile's own scores, by name.
    """

    benchmark: str
    profile: str
    scorer: ScorerName
    average: Score | None
    micro: Score
    groups: dict[str, Score]
    subsets: dict[str, Score]
    missing_subsets: tuple[str, ...]
    abstain_rate: float
    truncation_rate: float
    num_dropped_shots: int
    num_missing: int
    measures: dict[str, Score] = field(default_factory=dict[str, Score])


def judge(
    profile: Profile, samples: Sequence[Sample], answers: Sequence[Answer], scorer: ScorerName
) -> list[Outcome]:
    """The verdict on every answer, in the order of the answers; each is judged on its own.

    Raises:
        ConfigError: If the profile has no such scorer.
        KeyError: If an answer is to no sample of these.
    """
    if scorer not in profile.scorers:
        raise ConfigError(
            f"{profile.benchmark}/{profile.name} has no scorer {scorer}, only "
            f"{', '.join(profile.scorers)}."
        )
    by_id = {sample.id: sample for sample in samples}
    verdict_on = profile.scorers[scorer]
    outcomes: list[Outcome] = []
    for answer in answers:
        sample = by_id[answer.sample_id]
        outcomes.append(Outcome(sample, answer, verdict_on(sample, answer)))
    return outcomes


def score_benchmark(
    profile: Profile, outcomes: Sequence[Outcome], scorer: ScorerName
) -> BenchmarkScores:
    """Averages of outcomes as the profile wants them, with errors over clusters.

    Raises:
        ValueError: If there are no outcomes.
    """
    name = profile.benchmark
    by_subset: dict[str, list[Outcome]] = {subset: [] for subset in profile.subsets}
    for outcome in outcomes:
        by_subset[outcome.sample.subset].append(outcome)
    found = {subset: answers for subset, answers in by_subset.items() if answers}
    missing = tuple(subset for subset in profile.subsets if subset not in found)
    num_samples = len(outcomes)
    return BenchmarkScores(
        benchmark=name,
        profile=profile.name,
        scorer=scorer,
        average=None if missing else _macro(name, found),
        micro=score_accuracy(f"{name}-micro", outcomes, METRIC),
        groups={
            group: _macro(group, {subset: found[subset] for subset in members})
            for group, members in profile.groups.items()
            if all(subset in found for subset in members)
        },
        subsets={each: score_accuracy(each, answers, METRIC) for each, answers in found.items()},
        missing_subsets=missing,
        abstain_rate=sum(each.verdict.extracted is None for each in outcomes) / num_samples,
        truncation_rate=truncation_rate(outcomes),
        num_dropped_shots=sum(each.answer.num_dropped_shots for each in outcomes),
        num_missing=sum(each.answer.is_missing for each in outcomes),
        measures=profile.measures(outcomes) if profile.measures is not None else {},
    )


def truncation_rate(outcomes: Sequence[Outcome]) -> float:
    """Share of answers that were cut off; NaN if that is not known of every one."""
    reasons = [each.answer.finish_reason for each in outcomes]
    return math.nan if "unknown" in reasons else reasons.count("length") / len(reasons)


def _macro(name: str, by_subset: Mapping[str, Sequence[Outcome]]) -> Score:
    share = 1 / len(by_subset)
    parts = [
        (share, [(each.cluster_id, each.credit) for each in outcomes])
        for outcomes in by_subset.values()
    ]
    return score_weighted(name, METRIC, parts)
