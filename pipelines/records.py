"""What is recorded of a run and of each model: keys, metrics, parameters, a description."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.report import run_summary
from pipelines.results import MergeSummary, ResultRow, RunResults
from pipelines.sweep_table import shown_results
from pipelines.table import markdown_table, sample_counts

MAX_DESCRIPTION_LENGTH = 8000
"""Longest tag that MLflow keeps."""


def run_key(results: RunResults) -> str:
    """Digest of what a run found; without its facts, where only times may differ."""
    content = {key: value for key, value in asdict(results).items() if key != "facts"}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def safe_key(name: str) -> str:
    """A name as MLflow takes it in keys and paths; changed names stay distinct by a digest."""
    safe = re.sub(r"[^\w.\- ]", "_", name)[:100].strip(" .") or "_"
    if safe == name:
        return name
    return f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def model_metrics(results: RunResults, model: str) -> dict[str, float]:
    """Scores with their errors where known, coefficients and norms of one model."""
    metrics: dict[str, float] = {}
    for row in results.rows:
        if row.model == model:
            metrics[f"{row.metric}/{safe_key(row.benchmark)}"] = row.value
            metrics[f"{row.metric}_se/{safe_key(row.benchmark)}"] = row.standard_error
    average = results.average(model)
    if average:
        metric = _metric(results)
        metrics |= {f"{metric}/average": average[0], f"{metric}_se/average": average[1]}
    merge = _merge_of(results, model)
    if merge:
        metrics |= {f"coefficient/{safe_key(k)}": v for k, v in merge.coefficients.items()}
        metrics |= {f"alpha/{safe_key(k)}": v for k, v in merge.alpha.items()}
        metrics |= {f"norm/{safe_key(k)}": v for k, v in merge.norms.items()}
    if point := results.sweep.get(model):
        metrics |= {"dev/average": point.dev, "dev_se/average": point.dev_error}
        metrics["dev/objective"] = point.objective
    return _known(metrics)


def benchmark_metrics(row: ResultRow) -> dict[str, float]:
    """A model's score on one benchmark, its error, and of how many samples."""
    return _known(
        {
            row.metric: row.value,
            f"{row.metric}_se": row.standard_error,
            "num_samples": float(row.num_samples),
        }
    )


def benchmark_params(results: RunResults, row: ResultRow) -> dict[str, Any]:
    """What was asked of a model, and by which protocol."""
    return {
        "kind": "benchmark",
        "model": row.model,
        "benchmark": row.benchmark,
        "metric": row.metric,
        "protocol": _fact_about(results, "protocol of", row.benchmark),
        "dataset_digest": dataset_digest(results, row.benchmark),
    }


def dataset_digest(results: RunResults, benchmark: str) -> str:
    """Digest of a benchmark's samples; empty if it is not known."""
    return _fact_about(results, "digest of", benchmark)


def _fact_about(results: RunResults, what: str, benchmark: str) -> str:
    """A fact of a benchmark; of language benchmarks facts name the profile, too."""
    first = benchmark.partition(" ")[0]
    for name in (benchmark, first):
        if fact := results.facts.get(f"{what} {name}"):
            return fact
    near = [v for k, v in results.facts.items() if k.startswith(f"{what} {first}/")]
    return near[0] if len(near) == 1 else ""


def _known(metrics: dict[str, float]) -> dict[str, float]:
    """Without what is not a number, such as the error of a single source."""
    return {key: value for key, value in metrics.items() if math.isfinite(value)}


def model_params(results: RunResults, model: str, manifest: Path | None = None) -> dict[str, Any]:
    """What one model is, and digests of what it was made from.

    Args:
        results: The run.
        model: Row of the table.
        manifest: Of a merge, its manifest, which holds the recipe and the inputs' fingerprints.
    """
    row = next(row for row in results.rows if row.model == model)
    params: dict[str, Any] = {
        "kind": row.kind,
        "method": row.method,
        "coefficients": row.coefficients,
        "seed": results.seed,
        "num_samples": sample_counts(results),
    }
    merge = _merge_of(results, model)
    if merge:
        params |= {"scale": f"{merge.scale:.6g}", "norm_target": merge.norm_target}
    if point := results.sweep.get(model):
        params |= {"sweep/entry": point.group, "sweep/selected": point.is_selected}
        params |= {f"sweep/{safe_key(key)}": value for key, value in point.values.items()}
    params |= lineage(manifest)
    digests = {k: v for k, v in results.facts.items() if "digest" in k or "fingerprint" in k}
    return params | {f"run/{safe_key(key)}": value for key, value in digests.items()}


def lineage(manifest: Path | None) -> dict[str, str]:
    """A merge's key, its recipe, and the fingerprints of what it was made from.

    Empty for what has no manifest of a merge.
    """
    if manifest is None or not manifest.is_file():
        return {}
    content = json.loads(manifest.read_text(encoding="utf-8"))
    found = {
        f"fingerprint/{safe_key(entry['name'])}": str(entry["fingerprint"])
        for entry in content.get("fingerprints", [])
    }
    if "merge_key" in content:
        recipe = json.dumps(content.get("recipe", {}), ensure_ascii=False)
        found |= {"merge_key": content["merge_key"], "recipe": recipe}
    return found


def model_tags(results: RunResults, model: str) -> dict[str, str]:
    """Where one model is kept. Not a parameter: MLflow's comparison would plot it first."""
    merge = _merge_of(results, model)
    return {"nan_merge.checkpoint": merge.folder} if merge and merge.folder else {}


def run_params(results: RunResults) -> dict[str, Any]:
    """What the whole run is, with all its facts."""
    facts = {f"run/{safe_key(key)}": value for key, value in results.facts.items()}
    return {"kind": "run", "seed": results.seed, "num_samples": sample_counts(results)} | facts


def run_tags(results: RunResults) -> dict[str, str]:
    """What the whole run is found by."""
    tags = {"nan_merge.run_key": run_key(results), "nan_merge.kind": "run"}
    if commit := results.facts.get("git commit"):
        tags["mlflow.source.git.commit"] = commit.partition(" ")[0]
    return tags


def run_metrics(results: RunResults) -> dict[str, float]:
    """What sums up the whole run."""
    merged = {row.model for row in results.rows if row.kind == "merged"}
    averages = [found[0] for model in merged if (found := results.average(model))]
    metrics: dict[str, float] = {"num_failures": len(results.failures)}
    if averages:
        metrics[f"best_merged/{_metric(results)}_average"] = max(averages)
    return metrics


def comparison_view(results: RunResults) -> str:
    """State of MLflow's page of runs that shows a run's models, best average first.

    Without it the page shows one folded row and no scores.
    """
    key = f"tags.`nan_merge.run_key` = '{run_key(results)}'"
    metric = _metric(results)
    benchmarks = [safe_key(benchmark) for benchmark in results.benchmarks()]
    return json.dumps(
        {
            "searchFilter": f"{key} and params.kind != 'run' and params.kind != 'benchmark'",
            # Sorted by time, MLflow would fold the models into one row.
            "orderByKey": f"metrics.`{metric}/average`",
            "orderByAsc": False,
            "selectedColumns": [
                *(f"metrics.`{metric}/{name}`" for name in ["average", *benchmarks]),
                *(f"params.`{name}`" for name in ("method", "coefficients")),
            ],
        }
    )


def description(results: RunResults) -> str:
    """The run in Markdown, which MLflow shows at the top of the run's page."""
    shown = shown_results(results)
    text = f"{run_summary(results)}\n\n{markdown_table(shown)}"
    return (
        text
        if len(text) <= MAX_DESCRIPTION_LENGTH
        else run_summary(results)[:MAX_DESCRIPTION_LENGTH]
    )


def _metric(results: RunResults) -> str:
    metrics = {row.metric for row in results.rows}
    return metrics.pop() if len(metrics) == 1 else "score"


def _merge_of(results: RunResults, model: str) -> MergeSummary | None:
    return next((merge for merge in results.merges if merge.model == model), None)
