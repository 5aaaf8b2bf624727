"""Turn scores and manifests into the rows and summaries that tables and reports show."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.predictions import Prediction
from evaluators.scores import Score, score_average
from nan_merge.checkpoint import layer_of, natural_key
from nan_merge.recipe import MergeRecipe, ModelReference
from pipelines.config import INDIVIDUAL, MULTITASK, PRETRAINED, MergeEntry
from pipelines.evaluate import Candidate, predictions_path, read_part
from pipelines.paired import Pairs, difference_of, joined, pairs_of
from pipelines.provenance import git_commit
from pipelines.results import MergeSummary, ResultRow, RowKind, RunResults, baseline_model
from pipelines.split import Part, everything

Scores = Mapping[tuple[str, str], Score]  # (candidate's name, benchmark's name)


@dataclass(frozen=True)
class ScoredModels:
    """What evaluating a run's models gave.

    Attributes:
        rows: Of the table.
        facts: What was asked, for the report.
        with_averages: Adds averages over benchmarks, and differences to the baseline.
        notes: What a reader of the table should know.
    """

    rows: tuple[ResultRow, ...]
    facts: dict[str, str]
    with_averages: Callable[[RunResults], RunResults]
    notes: tuple[str, ...] = ()


def result_rows(
    scores: Scores,
    benchmarks: Sequence[str],
    models: Sequence[ModelReference],
    merges: Sequence[tuple[str, MergeRecipe]],
) -> tuple[ResultRow, ...]:
    """Rows of the table: the base, each task's own fine-tuned model, a model of all tasks if there
    is one, then the merges in order.
    """
    rows = [row_of(PRETRAINED, "pretrained", None, scores[PRETRAINED, name]) for name in benchmarks]
    names = {model.name for model in models}
    rows += [
        row_of(INDIVIDUAL, "individual", None, scores[name, name])
        for name in benchmarks
        if name in names
    ]
    if all((MULTITASK, name) in scores for name in benchmarks):
        rows += [
            row_of(MULTITASK, "multitask", None, scores[MULTITASK, name]) for name in benchmarks
        ]
    for merge, recipe in merges:
        rows += [row_of(merge, "merged", recipe, scores[merge, name]) for name in benchmarks]
    return tuple(rows)


def at_chance(scores: Scores, num_classes: Mapping[str, int]) -> list[str]:
    """Warn of benchmarks on which the pretrained model only guesses: labels are then suspicious.

    Args:
        scores: Of all models.
        num_classes: Benchmark -> how many classes it has.
    """
    guesses: list[str] = []
    for benchmark, count in num_classes.items():
        score, chance = scores[PRETRAINED, benchmark], 1 / count
        error = (chance * (1 - chance) / max(1, score.num_samples)) ** 0.5
        if score.value <= chance + 2 * error:
            guesses.append(f"{benchmark} {score.value:.1%} ({count} classes)")
    if not guesses:
        return []
    return [
        f"Suspicious: {PRETRAINED} is no better than chance on {', '.join(guesses)}. A pretrained "
        "CLIP is far better: labels may be in another order than the class names, or the heads of "
        "another model."
    ]


def row_of(model: str, kind: RowKind, recipe: MergeRecipe | None, score: Score) -> ResultRow:
    """A score as a row of the table; ``recipe`` is that of a merged model."""
    return ResultRow(
        model=model,
        kind=kind,
        method=recipe.method.name if recipe else "",
        coefficients=coefficients_label(recipe) if recipe else "",
        benchmark=score.benchmark,
        metric=score.metric,
        value=score.value,
        standard_error=score.standard_error,
        num_samples=score.num_samples,
    )


def with_averages(
    results: RunResults, candidates: Sequence[Candidate], part: Part = everything
) -> RunResults:
    """Add averages, and differences to the baseline, with errors over sources of samples.

    Both are computed from the predictions on disk, on the same part of the samples as the rows. A
    model that misses a benchmark gets neither.

    Raises:
        DataError: If predictions are missing or damaged.
    """
    by_name = {candidate.name: candidate for candidate in candidates}
    files = {model: _files(results, model, by_name) for model in results.models()}
    baseline, num_benchmarks = baseline_model(results), len(results.benchmarks())
    averages: dict[str, tuple[float, float]] = {}
    differences: dict[str, tuple[float, float]] = {}
    merged = {row.model for row in results.rows if row.kind == "merged"}
    reference: dict[str, list[Prediction]] = {}
    if baseline is not None and len(files[baseline]) == num_benchmarks:
        reference = _read(files[baseline], part)
    for model, paths in files.items():
        if len(paths) < num_benchmarks:
            continue
        answers = _read(paths, part)
        average = score_average(answers)
        averages[model] = (average.value, average.standard_error)
        if reference and model in merged and model != baseline:
            difference = difference_of(joined(_pairs(answers, reference)))
            differences[model] = (difference.value, difference.standard_error)
    folder = candidates[0].predictions.parents[1]
    return replace(
        results,
        averages=averages,
        differences=differences,
        predictions={
            model: {name: path.relative_to(folder).as_posix() for name, path in paths.items()}
            for model, paths in files.items()
        },
    )


def _files(results: RunResults, model: str, candidates: Mapping[str, Candidate]) -> dict[str, Path]:
    """Benchmark -> predictions behind a row of the table."""
    files: dict[str, Path] = {}
    for benchmark in results.benchmarks():
        row = results.row(model, benchmark)
        if row is not None:
            # On each benchmark the row of individual models shows the model fine-tuned for it.
            candidate = candidates[benchmark if row.kind == "individual" else model]
            files[benchmark] = predictions_path(candidate, benchmark)
    return files


def _read(paths: Mapping[str, Path], part: Part) -> dict[str, list[Prediction]]:
    return {name: read_part(path, part) for name, path in paths.items()}


def _pairs(
    answers: Mapping[str, Sequence[Prediction]], baseline: Mapping[str, Sequence[Prediction]]
) -> list[tuple[Pairs, NDArray[np.str_]]]:
    """Per benchmark, answers of two models of one run, which has one list of samples for all."""
    parts: list[tuple[Pairs, NDArray[np.str_]]] = []
    for name, found in answers.items():
        right_before = {each.sample_id: each.is_correct for each in baseline[name]}
        clusters = np.array([each.cluster_id for each in found])
        right = np.array([each.is_correct for each in found])
        reference = np.array([right_before[each.sample_id] for each in found])
        pairs = pairs_of(right, reference, clusters, np.full(len(found), name))
        parts.append((pairs, clusters))
    return parts


def coefficients_label(recipe: MergeRecipe) -> str:
    """A recipe's coefficients in a few words, as ``nan(task_vector), scale norm``."""
    spec = recipe.coefficients
    words = spec.source
    if spec.source in ("nan", "matched"):
        words += f"({spec.target})"
    if spec.scope != "model":
        words += f", per {spec.scope}"
    if spec.scale is not None:
        words += f", scale {spec.scale}"
    if spec.lambda_ != 1:
        words += f", lambda {spec.lambda_:g}"
    return words


def merge_summary(
    name: str, recipe: MergeRecipe, manifest: Mapping[str, Any], folder: Path
) -> MergeSummary:
    """What is plotted about a merge; coefficients per layer or tensor are shown as their mean."""
    norms = _means(manifest["norms"])
    return MergeSummary(
        model=name,
        method=recipe.method.name,
        norms=norms,
        norm_target=recipe.coefficients.target if norms else "",
        alpha=_means(manifest["alpha"]),
        coefficients=_means(manifest["coefficients"]),
        scale=manifest["scale"] * recipe.coefficients.lambda_,
        folder=str(folder),
        layers=_by_layer(manifest["coefficients"]),
    )


def _means(by_model: Mapping[str, Any]) -> dict[str, float]:
    return {
        model: sum(value.values()) / len(value) if isinstance(value, dict) else value
        for model, value in by_model.items()
    }


def _by_layer(by_model: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Layer -> model -> mean over the layer's keys; empty if there is one number per model."""
    found: dict[str, dict[str, list[float]]] = {}
    for model, values in by_model.items():
        for key, value in values.items() if isinstance(values, dict) else ():
            found.setdefault(layer_of(key), {}).setdefault(model, []).append(value)
    return {
        layer: {model: fmean(values) for model, values in found[layer].items()}
        for layer in sorted(found, key=natural_key)
    }


def ablation_pairs(merges: Sequence[MergeEntry]) -> list[tuple[str, str]]:
    """Pairs of merges that differ in their coefficients alone, so that a difference means it.

    NAN against uniform coefficients of NAN's sum shows what its allocation is worth; those
    against plain uniform coefficients show what its scale is worth.
    """
    pairs: list[tuple[str, str]] = []
    for other in merges:
        for entry in merges:
            source, baseline = entry.coefficients.source, other.coefficients.source
            scale = entry.coefficients.scale == other.coefficients.scale
            related = (source, baseline) in (("nan", "matched"), ("matched", "uniform"))
            if entry.method == other.method and scale and related:
                pairs.append((entry.name, other.name))
    return pairs


def environment_facts() -> dict[str, str]:
    """Versions and devices behind a result."""
    packages = ("nan-merge", "torch", "open_clip_torch", "ray", "mlflow", "numpy", "safetensors")
    facts = {"Python": platform.python_version(), "platform": platform.platform()}
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    facts["device"] = "CPU; no GPU path was run"
    if commit := git_commit(Path.cwd()):
        facts["git commit"] = commit
    return facts
