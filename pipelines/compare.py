"""Compare models with a baseline, paired by sample: what is better, by how much, how surely."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from nan_merge.errors import ConfigError, DataError
from pipelines.compared_models import (
    AnswerReader,
    KeptModel,
    common_dev_share,
    default_baseline,
    find_models,
    pick,
    split_reference,
)
from pipelines.flips import Flip
from pipelines.outcomes import Outcomes
from pipelines.paired import Difference, Pairs, bootstrap, difference_of, joined
from pipelines.paired_tests import Interval, holm, interval_of, p_of_no_difference
from pipelines.pairing import pair

AVERAGE = "average"
CONFIDENCE = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True)
class Compared:
    """A candidate against the baseline on one benchmark, or on the average of all.

    Attributes:
        difference: Of scores.
        interval: Two-sided, of `CONFIDENCE`.
        p_value: Two-sided, of no difference.
        test: Which test it is of.
        p_corrected: By Holm, over the model's benchmarks; of an average, as it is.
    """

    difference: Difference
    interval: Interval
    p_value: float
    test: str
    p_corrected: float


@dataclass(frozen=True)
class ComparedModel:
    """One model of a comparison.

    Attributes:
        model: Its name, with its run's where that is needed.
        kind: As in `KeptModel`.
        scores: Benchmark -> score, in [0, 1].
        compared: Benchmark -> against the baseline; empty for the baseline itself.
        average: Against the baseline; None for the baseline, and where a benchmark is missing.
        mean_rank: Over benchmarks, 1 is best, among the models that are ranked; None if it is not.
        normalised: Mean over benchmarks of the share of the individual model's score that it
            reaches; None if there is none.
        by_problem: Score of problems -> against the baseline; in no average.
    """

    model: str
    kind: str
    scores: Mapping[str, float]
    compared: Mapping[str, Compared]
    average: Compared | None
    mean_rank: float | None
    normalised: float | None
    by_problem: Mapping[str, Compared] = field(default_factory=dict[str, Compared])


@dataclass(frozen=True)
class Comparison:
    """Everything that comparing models with a baseline found.

    Attributes:
        baseline: The baseline's name.
        benchmarks: Names of those compared.
        models: The baseline and all others, in the order of their runs.
        flips: Samples that flipped.
        places: Folder of each model's run.
        notes: What a reader should know.
        resamples: Of each bootstrap.
        seed: Of the bootstraps.
    """

    baseline: str
    benchmarks: tuple[str, ...]
    models: tuple[ComparedModel, ...]
    flips: tuple[Flip, ...]
    places: Mapping[str, Path]
    notes: tuple[str, ...]
    resamples: int
    seed: int


def compare_runs(
    folders: Sequence[Path],
    baseline: str | None,
    reader: AnswerReader,
    resamples: int = RESAMPLES,
    seed: int = 0,
    only: Collection[str] | None = None,
) -> Comparison:
    """Compare all models of runs, evaluations and imports with one of them.

    Args:
        folders: Of finished runs.
        baseline: Name of the model to compare with; `default_baseline` if None.
        reader: Reads their answers.
        resamples: Of each bootstrap.
        seed: Of the bootstraps.
        only: Names of the models to compare, beside the baseline; all if absent.

    Raises:
        ConfigError: If there is no such baseline, nothing to compare with it, or a run is named
            twice.
        DataError: If answers are missing or damaged, or models were not asked the same.
    """
    models, reference = _models(folders, baseline, reader)
    if only is not None:
        models = [each for each in models if each is reference or each.name in only]
    benchmarks = tuple(reference.records)
    shared = [each for each in models if set(each.records) & set(benchmarks)]
    if len(shared) < 2:
        raise DataError(
            f"No other model was asked a benchmark of {reference.name} ({', '.join(benchmarks)})."
        )
    dev_share = common_dev_share(shared)
    outcomes = {
        model.name: {
            name: reader.read(model, name, dev_share)
            for name in benchmarks
            if name in model.records
        }
        for model in shared
    }
    found = _compare_all(outcomes, reference.name, benchmarks, resamples, seed)
    kinds = {model.name: model.kind for model in shared}
    summed = _with_ranks([replace(each, kind=kinds[each.model]) for each in found], benchmarks)
    return Comparison(
        baseline=reference.name,
        benchmarks=benchmarks,
        models=tuple(_normalised(summed, benchmarks)),
        flips=tuple(_flips(outcomes, reference.name)),
        places={model.name: model.folder for model in shared},
        notes=tuple(_notes(models, outcomes, reference)),
        resamples=resamples,
        seed=seed,
    )


def _models(
    folders: Sequence[Path], baseline: str | None, reader: AnswerReader
) -> tuple[list[KeptModel], KeptModel]:
    """All models of the folders, under names that tell them apart, and the baseline."""
    places = [folder.resolve() for folder in folders]
    if twice := [each for n, each in enumerate(folders) if places[n] in places[:n]]:
        raise ConfigError(f"{twice[0]} is named twice; a run is compared with others, not itself.")
    found = [reader.view(model) for folder in folders for model in find_models(folder)]
    models = _named_apart(found)
    if len(models) < 2:
        raise ConfigError(
            f"{models[0].name} is the only model of {folders[0]}; name another run to compare it "
            "with."
        )
    if baseline is None:
        return models, models[found.index(default_baseline(found))]
    folder, name = split_reference(baseline)
    for model, own in zip(models, found, strict=True):
        if (own.folder, own.name) == (folder, name):
            return models, model
    return models, pick(models, baseline, ", ".join(map(str, folders)))


def compare_pairs(pairs: Mapping[str, Pairs], resamples: int, seed: int) -> dict[str, Compared]:
    """Each benchmark's comparison, with p values corrected for their number."""
    found: dict[str, Compared] = {}
    for name, each in pairs.items():
        found[name] = compared(name, each, resamples, seed)
    corrected = holm([each.p_value for each in found.values()])
    return {
        name: replace(each, p_corrected=p)
        for (name, each), p in zip(found.items(), corrected, strict=True)
    }


def compared(name: str, pairs: Pairs, resamples: int, seed: int) -> Compared:
    """One comparison; the bootstrap's seed is the benchmark's own."""
    difference, draws = difference_of(pairs), draws_of(name, pairs, resamples, seed)
    p_value, test = p_of_no_difference(difference)
    interval = interval_of(difference, draws, CONFIDENCE)
    return Compared(difference, interval, p_value, test, p_value)


def draws_of(name: str, pairs: Pairs, resamples: int, seed: int) -> np.ndarray:
    """A benchmark's bootstrap; what is drawn does not depend on which others there are."""
    return bootstrap(pairs, resamples, [seed, zlib.crc32(name.encode())])


def average_pairs(outcomes: Mapping[str, Outcomes], pairs: Mapping[str, Pairs]) -> Pairs:
    """Pairs over all benchmarks, which count the same."""
    return joined([(pairs[name], outcomes[name].clusters) for name in pairs])


def _compare_all(
    outcomes: Mapping[str, Mapping[str, Outcomes]],
    baseline: str,
    benchmarks: Sequence[str],
    resamples: int,
    seed: int,
) -> list[ComparedModel]:
    found: list[ComparedModel] = []
    reference = outcomes[baseline]
    for model, answers in outcomes.items():
        if model == baseline:
            scores = {name: _score(each) for name, each in answers.items()}
            found.append(ComparedModel(model, "", scores, {}, None, None, None))
            continue
        pairs = {name: pair(each, reference[name]) for name, each in answers.items()}
        by_benchmark = compare_pairs(pairs, resamples, seed)
        average = None
        if len(pairs) == len(benchmarks):
            average = compared(AVERAGE, average_pairs(answers, pairs), resamples, seed)
        scores = {name: each.difference.candidate for name, each in by_benchmark.items()}
        problems = compare_pairs(_problem_pairs(answers, reference), resamples, seed)
        found.append(ComparedModel(model, "", scores, by_benchmark, average, None, None, problems))
    return found


def _problem_pairs(
    answers: Mapping[str, Outcomes], reference: Mapping[str, Outcomes]
) -> dict[str, Pairs]:
    """Scores that several answers make together, paired by problem."""
    found: dict[str, Pairs] = {}
    for name, whole in answers.items():
        others = {each.benchmark: each for each in reference[name].by_problem}
        for each in whole.by_problem:
            found[each.benchmark] = pair(each, others[each.benchmark])
    return found


def _score(outcomes: Outcomes) -> float:
    """Unweighted mean over subsets."""
    _, subset = np.unique(outcomes.subsets, return_inverse=True)
    return float(np.mean(np.bincount(subset, weights=outcomes.credits) / np.bincount(subset)))


def _with_ranks(models: Sequence[ComparedModel], benchmarks: Sequence[str]) -> list[ComparedModel]:
    """Mean ranks over benchmarks, ties shared (Demšar 2006), of the merged models if there are."""
    from scipy.stats import rankdata

    whole = [each for each in models if len(each.scores) == len(benchmarks)]
    merged = [each for each in whole if each.kind == "merged"]
    ranked = merged if len(merged) > 1 else whole
    if len(ranked) < 2:
        return list(models)
    # Equal scores may differ in their last bits.
    scores = np.round([[each.scores[name] for name in benchmarks] for each in ranked], 12)
    ranks = dict(
        zip([each.model for each in ranked], rankdata(-scores, axis=0).mean(axis=1), strict=True)
    )
    return [
        replace(each, mean_rank=float(ranks[each.model])) if each.model in ranks else each
        for each in models
    ]


def _normalised(models: Sequence[ComparedModel], benchmarks: Sequence[str]) -> list[ComparedModel]:
    """Shares of the individual models' scores: on each benchmark of the best such model."""
    individual = [each for each in models if each.kind == "individual"]
    best = {
        name: max((each.scores.get(name, math.nan) for each in individual), default=math.nan)
        for name in benchmarks
    }
    if not all(score > 0 for score in best.values()):
        return list(models)
    return [
        replace(
            each,
            normalised=float(np.mean([each.scores[name] / best[name] for name in benchmarks])),
        )
        if len(each.scores) == len(benchmarks)
        else each
        for each in models
    ]


def _flips(outcomes: Mapping[str, Mapping[str, Outcomes]], baseline: str) -> list[Flip]:
    found: list[Flip] = []
    for model, answers in outcomes.items():
        for name, each in answers.items() if model != baseline else ():
            other = outcomes[baseline][name]
            for place in np.flatnonzero(each.credits != other.credits):
                found.append(
                    Flip(
                        benchmark=name,
                        sample_id=str(each.sample_ids[place]),
                        model=model,
                        won=bool(each.credits[place] > other.credits[place]),
                        answer=each.answers[place],
                        baseline_answer=other.answers[place],
                        gold=each.golds[place],
                    )
                )
    return found


def _notes(
    models: Sequence[KeptModel],
    outcomes: Mapping[str, Mapping[str, Outcomes]],
    reference: KeptModel,
) -> list[str]:
    notes = split_notes(common_dev_share(models))
    left_out = [model.name for model in models if model.name not in outcomes]
    if left_out:
        notes.append(
            f"{', '.join(left_out)} answered no benchmark of {reference.name} and "
            f"{'is' if len(left_out) == 1 else 'are'} left out."
        )
    extra = {name for model in models for name in model.records} - set(reference.records)
    if extra:
        notes.append(f"{', '.join(sorted(extra))}: not compared, {reference.name} was not asked.")
    for name, other in outcomes[reference.name].items():
        for model, answers in outcomes.items():
            if name in answers and answers[name].engine != other.engine:
                notes.append(engine_note(answers[name], other, model))
    return list(dict.fromkeys(notes))


def split_notes(dev_share: float) -> list[str]:
    """What is left out because a sweep's search saw it."""
    if dev_share == 0:
        return []
    return [f"Only samples that no sweep's search saw are compared (dev_share {dev_share:g})."]


def engine_note(found: Outcomes, other: Outcomes, model: str) -> str:
    """What computed two models' answers differs: their difference may be the engine's."""
    names = [
        name
        for name in dict.fromkeys([*found.engine, *other.engine])
        if found.engine.get(name) != other.engine.get(name)
    ]
    parts = ", ".join(
        f"{name} {found.engine.get(name, 'none')} against {other.engine.get(name, 'none')}"
        for name in names
    )
    return f"{model} and {other.model} were computed by other engines ({parts})."


def _named_apart(models: Sequence[KeptModel]) -> list[KeptModel]:
    """Models of several runs that share a name get their folder's beside it."""
    names = [model.name for model in models]
    return [
        model
        if names.count(model.name) == 1
        else replace(model, name=f"{model.name} ({model.folder})")
        for model in models
    ]
