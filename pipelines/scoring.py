"""How a run's models are scored, whatever kind they are: image towers or language models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evaluators.image_sets import load_image_set
from evaluators.scores import Score
from nan_merge.recipe import MergeRecipe
from pipelines.collect import ScoredModels, at_chance, result_rows, with_averages
from pipelines.config import RunConfig
from pipelines.evaluate import (
    Candidate,
    evaluate_candidates,
    image_benchmarks,
    is_answered,
    tower_identity,
)
from pipelines.language_benchmarks import OWN_ENGINE
from pipelines.language_collect import language_candidate, score_language_models
from pipelines.language_engine import open_benchmarks
from pipelines.language_evaluate import is_answered as is_asked
from pipelines.language_records import model_identity
from pipelines.split import Part, everything
from pipelines.workers import Workers

if TYPE_CHECKING:
    from pipelines.run import RunModels

Merges = Sequence[tuple[str, MergeRecipe, Path]]  # name, recipe, checkpoint folder
Values = dict[tuple[str, str], float]  # (candidate's name, column) -> value in [0, 1]


@dataclass(frozen=True)
class Scoring:
    """What a run does with models once they are there.

    Attributes:
        clusters: Benchmark -> the clusters of its samples.
        identity_of: Digests of a checkpoint, for `Candidate.identity`.
        is_answered: Whether nothing has to be asked of a candidate any more.
        values: Answers what is missing; scores of candidates on a part of the samples.
        collect: The same, as rows of a table; the candidates are all of the run's.
    """

    clusters: Mapping[str, frozenset[str]]
    identity_of: Callable[[Path], dict[str, str]]
    is_answered: Callable[[Candidate], bool]
    values: Callable[[Sequence[Candidate], Part], Values]
    collect: Callable[[Merges, Sequence[Candidate], Part], ScoredModels]


def open_scoring(config: RunConfig, models: RunModels, workers: Workers) -> Scoring:
    """Open the run's benchmarks.

    Raises:
        NanMergeError: If a benchmark's data is missing or damaged.
    """
    opened = _language_scoring if config.evaluate.is_language else _image_scoring
    return opened(config, models, workers)


def _image_scoring(config: RunConfig, models: RunModels, workers: Workers) -> Scoring:
    assert models.clip is not None, "checked before anything ran"
    wanted = config.evaluate
    names, heads = wanted.image_tasks, config.cache / "heads"
    batch_size, dtype, at_once = wanted.batch_size, wanted.dtype, wanted.models_at_once
    benchmarks = image_benchmarks(models.clip, models.test_sets, names, heads, workers)

    sizes = {
        each.name: len(load_image_set(Path(each.data_path)).class_names) for each in benchmarks
    }

    def score(candidates: Sequence[Candidate], part: Part) -> dict[tuple[str, str], Score]:
        return evaluate_candidates(
            candidates, benchmarks, batch_size, workers, part, dtype, at_once
        )

    def values(candidates: Sequence[Candidate], part: Part) -> Values:
        scores = score(candidates, part)
        return {place: score.value for place, score in scores.items()}

    def collect(merges: Merges, candidates: Sequence[Candidate], part: Part) -> ScoredModels:
        scores = score(candidates, part)
        recipes = [(name, recipe) for name, recipe, _ in merges]
        return ScoredModels(
            rows=result_rows(scores, names, models.models, recipes),
            facts={f"digest of {each.name}": each.digest[:16] for each in benchmarks},
            with_averages=lambda results: with_averages(results, candidates, part),
            notes=(*models.notes, *at_chance(scores, sizes)),
        )

    return Scoring(
        clusters={
            each.name: frozenset(
                map(each.cluster_of, load_image_set(Path(each.data_path)).sample_ids)
            )
            for each in benchmarks
        },
        identity_of=tower_identity,
        is_answered=lambda candidate: is_answered(candidate, benchmarks, batch_size, dtype),
        values=values,
        collect=collect,
    )


def _language_scoring(config: RunConfig, models: RunModels, workers: Workers) -> Scoring:
    wanted, options = config.evaluate, config.evaluate.backend.options()
    benchmarks = open_benchmarks(wanted.language_benchmarks, wanted.data, wanted.engine)

    def collect(merges: Merges, candidates: Sequence[Candidate], part: Part) -> ScoredModels:
        return score_language_models(
            config, models, merges, candidates, workers, part=part, benchmarks=benchmarks
        )

    def values(candidates: Sequence[Candidate], part: Part) -> Values:
        rows = collect([], candidates, part).rows
        return {(row.model, row.benchmark): row.value for row in rows}

    return Scoring(
        clusters={
            each.name: frozenset(s.cluster_id for s in each.samples if s.id in each.asked)
            for each in benchmarks
        },
        identity_of=model_identity,
        # Another engine's answers may lie where only it knows, so such models are merged again.
        is_answered=lambda each: (
            wanted.engine.name == OWN_ENGINE
            and is_asked(language_candidate(each), benchmarks, options)
        ),
        values=values,
        collect=collect,
    )


__all__ = ["Merges", "Scoring", "everything", "open_scoring"]
