"""What a run found: rows of scores and the coefficients behind them, as files and as objects."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from nan_merge.publish import write_text_atomically

RowKind = Literal["pretrained", "individual", "multitask", "merged"]


@dataclass(frozen=True)
class ResultRow:
    """One score of one model.

    Attributes:
        model: Row of the table, e.g. "Task Arithmetic + NAN (weights)".
        kind: Where the model comes from. "individual" rows hold, for each benchmark, the model
            fine-tuned on it; "multitask" is one model trained on all tasks.
        method: Merge method's name; empty for models that are not merged.
        coefficients: Short words for the coefficients, e.g. "nan(weights) x 3.5"; may be empty.
        benchmark: Benchmark's name.
        metric: e.g. "top1".
        value: In [0, 1].
        standard_error: Over the samples' sources, same unit as `value`; nan if it is unknown.
        num_samples: Samples scored.
    """

    model: str
    kind: RowKind
    method: str
    coefficients: str
    benchmark: str
    metric: str
    value: float
    standard_error: float
    num_samples: int


@dataclass(frozen=True)
class MergeSummary:
    """What is plotted about one merge.

    Attributes:
        model: As in `ResultRow`.
        method: Merge method's name.
        norms: Norm that each coefficient was made from, per fine-tuned model; empty if none was.
        norm_target: "weights" or "task_vector"; empty if no norm was used.
        alpha: Per fine-tuned model; sums to 1 for NAN.
        coefficients: Per fine-tuned model, what multiplies its task vector or weights.
        scale: The global factor between alpha and coefficients, lambda included.
        folder: Checkpoint's folder, relative to the run folder.
        layers: Layer -> fine-tuned model -> coefficient, where they are not the same for the whole
            model; of tensors, their layer's mean. Empty in results of older versions.
    """

    model: str
    method: str
    norms: dict[str, float]
    norm_target: str
    alpha: dict[str, float]
    coefficients: dict[str, float]
    scale: float
    folder: str
    layers: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepPoint:
    """What a sweep knows of one of its merges; its rows are of samples that the search never saw.

    Attributes:
        group: The entry of `sweep.merges` that it comes from.
        values: What varies -> its value here.
        dev: Average over benchmarks on the dev split, in [0, 1].
        dev_error: Its standard error over sources.
        objective: What the search maximised, on the dev split.
        is_selected: Whether it is the best of its group by that.
    """

    group: str
    values: dict[str, Any]
    dev: float
    dev_error: float
    objective: float
    is_selected: bool


@dataclass(frozen=True)
class PairDifference:
    """One model's score minus another's, paired by sample.

    Attributes:
        model: As in `ResultRow`.
        baseline: The other one.
        benchmark: As in `ResultRow`; empty for the average over benchmarks.
        difference: In [-1, 1].
        standard_error: Of the difference, over clusters of samples, same unit; nan if unknown.
        num_samples: Samples that both answered.
    """

    model: str
    baseline: str
    benchmark: str
    difference: float
    standard_error: float
    num_samples: int


@dataclass(frozen=True)
class RunResults:
    """Everything that the table, the report and MLflow show of one run.

    Attributes:
        name: The run's name.
        seed: The run's seed.
        rows: One per (model, benchmark), models in the order of the table.
        merges: One per merged model, in the order of the table.
        failures: What failed: name of the thing -> one line saying why.
        facts: Versions, devices, digests, times; printed at the report's end.
        config_yaml: The run file with its overrides, as YAML.
        model_norms: For the plots: {"weights": {model: norm}, "task_vector": {model: norm}}.
        averages: Model -> unweighted mean over benchmarks and its standard error over sources.
            Empty in results of older versions.
        differences: Merged model -> its average minus that of `baseline_model`, paired by sample,
            and the standard error of that over sources. Empty in results of older versions.
        sweep: Name of a sweep's merge -> how it was found.
        comparisons: Of the pairs that the run file's ``published`` names, on every benchmark and
            on average. Empty for image tasks and in results of older versions.
        predictions: Model -> benchmark -> file of its answers, relative to the run folder. Empty
            in results of older versions.
    """

    name: str
    seed: int
    rows: tuple[ResultRow, ...]
    merges: tuple[MergeSummary, ...]
    failures: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    config_yaml: str = ""
    model_norms: dict[str, dict[str, float]] = field(default_factory=dict)
    averages: dict[str, tuple[float, float]] = field(default_factory=dict)
    differences: dict[str, tuple[float, float]] = field(default_factory=dict)
    sweep: dict[str, SweepPoint] = field(default_factory=dict)
    comparisons: tuple[PairDifference, ...] = ()
    predictions: dict[str, dict[str, str]] = field(default_factory=dict)

    def models(self) -> list[str]:
        """Names of the table's rows, in order."""
        return list(dict.fromkeys(row.model for row in self.rows))

    def benchmarks(self) -> list[str]:
        """Names of the table's columns, in order."""
        return list(dict.fromkeys(row.benchmark for row in self.rows))

    def row(self, model: str, benchmark: str) -> ResultRow | None:
        """The score of ``model`` on ``benchmark``, if it was measured."""
        return next(
            (row for row in self.rows if (row.model, row.benchmark) == (model, benchmark)), None
        )

    def average(self, model: str) -> tuple[float, float] | None:
        """Unweighted mean over benchmarks and its standard error, in [0, 1].

        Results of older versions know only the benchmarks' own errors. Those are taken as
        independent: the error of the mean of k scores is then sqrt(sum of squared errors) / k.
        None if a benchmark is missing: a mean over fewer benchmarks would not compare.
        """
        if model in self.averages:
            return self.averages[model]
        rows = [self.row(model, benchmark) for benchmark in self.benchmarks()]
        if any(row is None for row in rows) or not rows:
            return None
        found = [row for row in rows if row is not None]
        mean = sum(row.value for row in found) / len(found)
        variance = sum(row.standard_error**2 for row in found)
        return mean, variance**0.5 / len(found)


def baseline_model(results: RunResults) -> str | None:
    """The merged model that others are compared to: the first by Task Arithmetic, or the first."""
    merged = [row for row in results.rows if row.kind == "merged"]
    plain = [row for row in merged if row.method == "task_arithmetic"]
    return next((row.model for row in plain + merged), None)


def write_results(results: RunResults, folder: Path) -> Path:
    """Write ``results.json`` (the rows, a plain list) and ``run.json`` (all the rest)."""
    content = _without_nan(asdict(results))
    rows = content.pop("rows")
    for name, part in (("results.json", rows), ("run.json", content)):
        text = json.dumps(part, indent=1, ensure_ascii=False)
        write_text_atomically(folder / name, f"{text}\n")
    return folder / "results.json"


def _without_nan(value: Any) -> Any:
    """The same with None for nan: an error that is unknown is null in JSON, which has no nan."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _with_nan(content: dict[str, Any]) -> dict[str, Any]:
    """A row as it was before `_without_nan`."""
    return content | {"standard_error": _error(content["standard_error"])}


def _error(value: float | None) -> float:
    return math.nan if value is None else value


def read_results(folder: Path) -> RunResults:
    """Read what `write_results` wrote."""
    rows: Iterable[dict[str, Any]] = json.loads(
        (folder / "results.json").read_text(encoding="utf-8")
    )
    rest = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    merges = tuple(MergeSummary(**merge) for merge in rest.pop("merges"))
    rest["comparisons"] = tuple(
        PairDifference(**_with_nan(each)) for each in rest.get("comparisons", ())
    )
    for name in ("averages", "differences"):
        found = rest.get(name, {})
        rest[name] = {model: (value, _error(error)) for model, (value, error) in found.items()}
    rest["sweep"] = {
        name: SweepPoint(**{**each, "dev_error": _error(each["dev_error"])})
        for name, each in rest.get("sweep", {}).items()
    }
    return RunResults(
        rows=tuple(ResultRow(**_with_nan(row)) for row in rows), merges=merges, **rest
    )
