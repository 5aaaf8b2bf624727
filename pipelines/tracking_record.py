"""What goes to MLflow: a parent for the run, a child per model, a grandchild per benchmark.

Grandchildren end before their child, children before the parent: what is finished is complete, and
a recording that goes on skips it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.records import (
    benchmark_metrics,
    benchmark_params,
    comparison_view,
    dataset_digest,
    description,
    model_metrics,
    model_params,
    model_tags,
    run_key,
    run_metrics,
    run_params,
    run_tags,
)
from pipelines.registry import register_merge
from pipelines.results import ResultRow, RunResults

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

    from pipelines.config import Track

RUN_KEY, KIND, MODEL, PARENT = (
    "nan_merge.run_key",
    "nan_merge.kind",
    "nan_merge.model",
    "mlflow.parentRunId",
)
MAX_PARAM_LENGTH = 6000
MAX_BATCH = 100
MAX_VIEW_LENGTH = 5000
MAX_DIGEST_LENGTH = 36
RUN_FILES = ("results.json", "run.json", "sweep.json", "comparison.json", "report.html")


@dataclass(frozen=True)
class Files:
    """Files that go with models.

    Attributes:
        manifests: Model -> its merge manifest or recipe.
        predictions: Model -> file or folder of its predictions.
        checkpoints: Merged model -> its folder, of those that are registered.
        pushed: Merged model -> where its checkpoint was copied to.
    """

    manifests: dict[str, Path] = field(default_factory=dict[str, Path])
    predictions: dict[str, Path] = field(default_factory=dict[str, Path])
    checkpoints: dict[str, Path] = field(default_factory=dict[str, Path])
    pushed: dict[str, str] = field(default_factory=dict[str, str])

    def of_benchmark(self, row: ResultRow) -> list[Path]:
        """The files with a model's predictions on one benchmark."""
        # The row of individual models shows on each benchmark the model fine-tuned for it.
        own = self.predictions.get(row.model)
        if own is None and row.kind == "individual":
            own = self.predictions.get(row.benchmark)
        if own is None or not own.is_dir():
            return []
        # A record of a language benchmark is BENCHMARK.PROFILE.KEY; a column may say more.
        first = row.benchmark.partition(" ")[0].partition("/")[0]
        images = own.glob(f"{_literal(row.benchmark)}.jsonl")
        return sorted({*images, *own.glob(f"{_literal(first)}.*.json*")})

    def of_no_benchmark(self, model: str, rows: Sequence[ResultRow]) -> list[Path]:
        """Files with a model's predictions that none of its rows claims."""
        own = self.predictions.get(model)
        if own is None or not own.is_dir():
            return [] if own is None else [own]
        claimed = {path for row in rows for path in self.of_benchmark(row)}
        return sorted(
            path for path in own.iterdir() if path not in claimed and not path.name.startswith(".")
        )


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name).replace(
        "/", "?"
    )


def record_run(
    client: MlflowClient,
    experiment: str,
    results: RunResults,
    folder: Path,
    files: Files,
    config: Track,
    check: Callable[[str], None],
) -> None:
    """Record what is not recorded yet.

    Args:
        client: Connected to the store.
        experiment: Its id.
        results: What the run found.
        folder: The run folder.
        files: What goes with models.
        config: Says under which name the merges of ``files.checkpoints`` are registered.
        check: Called with a model's name before it is recorded; may raise to stop.
    """
    recorded = _find(client, experiment, run_key(results))
    if recorded.is_complete:
        return
    now, models = int(time.time() * 1000), results.models()
    children = dict(recorded.children)
    with _run(
        client, experiment, _title(results), now, run_tags(results), recorded.parent
    ) as parent:
        for index, model in enumerate(models):
            if model in children:
                continue
            check(model)
            # MLflow shows the latest run first; so started, models stand in the table's order.
            start = now + len(models) - index
            children[model] = _record_model(
                client, experiment, parent, results, model, start, files
            )
        for model, checkpoint in files.checkpoints.items():
            if config.register_as is not None and model in children:
                register_merge(
                    client,
                    config.register_as,
                    results,
                    model,
                    children[model],
                    checkpoint,
                    upload_weights=config.upload_weights,
                    pushed=files.pushed.get(model, ""),
                )
        _record_whole(client, experiment, parent, results, folder, files)


@dataclass(frozen=True)
class _Recorded:
    """What an experiment holds of a run."""

    parent: str | None
    is_complete: bool
    children: dict[str, str]


def _find(client: MlflowClient, experiment: str, key: str) -> _Recorded:
    """What is there; children that an interrupted recording left unfinished are deleted."""
    runs = list(_search(client, experiment, key))
    parents = [run for run in runs if PARENT not in run.data.tags]
    done = [run for run in parents if run.info.status == "FINISHED"]
    parent = next(iter([*done, *parents]), None)
    if parent is None or done:
        return _Recorded(parent.info.run_id if parent else None, bool(done), {})
    kept = {parent.info.run_id}
    children: dict[str, str] = {}
    for run in runs:
        is_child = run.data.tags.get(PARENT) == parent.info.run_id
        if is_child and run.info.status == "FINISHED":
            children[run.data.tags[MODEL]] = run.info.run_id
            kept.add(run.info.run_id)
    for run in runs:
        if run.info.run_id not in kept and run.data.tags.get(PARENT) not in children.values():
            client.delete_run(run.info.run_id)
    return _Recorded(parent.info.run_id, False, children)


def _search(client: MlflowClient, experiment: str, key: str) -> Iterator[Run]:
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment], f"tags.`{RUN_KEY}` = '{key}'", max_results=1000, page_token=token
        )
        yield from page
        token = page.token
        if not token:
            return


def _record_model(
    client: MlflowClient,
    experiment: str,
    parent: str,
    results: RunResults,
    model: str,
    start: int,
    files: Files,
) -> str:
    """The child of one model, with its grandchildren; returns its id."""
    key = run_key(results)
    tags = {RUN_KEY: key, KIND: "model", MODEL: model, PARENT: parent}
    tags |= model_tags(results, model)
    if place := files.pushed.get(model):
        tags["nan_merge.pushed_to"] = place
    with _run(client, experiment, model, start, tags) as child:
        rows = [row for row in results.rows if row.model == model]
        for place, row in enumerate(rows):
            tags = {RUN_KEY: key, KIND: "benchmark", MODEL: model, PARENT: child}
            begun = start + len(rows) - place
            with _run(client, experiment, row.benchmark, begun, tags) as grandchild:
                _record_benchmark(client, grandchild, results, row, files)
        _log(
            client,
            child,
            model_metrics(results, model),
            model_params(results, model, files.manifests.get(model)),
        )
        if (manifest := files.manifests.get(model)) is not None and manifest.exists():
            _log_path(client, child, manifest, "manifests")
        for path in files.of_no_benchmark(model, rows):
            _log_path(client, child, path, "predictions")
    return child


def _record_benchmark(
    client: MlflowClient, run: str, results: RunResults, row: ResultRow, files: Files
) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    _log(client, run, benchmark_metrics(row), benchmark_params(results, row))
    if digest := dataset_digest(results, row.benchmark):
        dataset = Dataset(row.benchmark, digest[:MAX_DIGEST_LENGTH], "local", row.benchmark)
        tags = [InputTag("mlflow.data.context", "evaluation")]
        client.log_inputs(run, [DatasetInput(dataset, tags)])
    for path in files.of_benchmark(row):
        client.log_artifact(run, str(path), "predictions")


def _record_whole(
    client: MlflowClient,
    experiment: str,
    parent: str,
    results: RunResults,
    folder: Path,
    files: Files,
) -> None:
    """What belongs to the run and to none of its models."""
    _log(client, parent, run_metrics(results), run_params(results))
    client.set_tag(parent, "mlflow.note.content", description(results))
    view = comparison_view(results)
    if len(view) <= MAX_VIEW_LENGTH:
        client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{run_key(results)}", view)
    client.log_text(parent, results.config_yaml, "config.yaml")
    client.log_text(parent, _installed(), "environment.txt")
    for file in RUN_FILES:
        if (folder / file).is_file():
            client.log_artifact(parent, str(folder / file))
    if (folder / "plots").is_dir():
        client.log_artifacts(parent, str(folder / "plots"), "plots")
    kinds = {"manifests": files.manifests, "predictions": files.predictions}
    shown = {*results.models(), *_individual(results, files)}
    for kind, paths in kinds.items():
        for model in paths.keys() - shown:  # a fine-tuned model that has no row
            _log_path(client, parent, paths[model], kind)


def _individual(results: RunResults, files: Files) -> list[str]:
    """Fine-tuned models whose predictions are recorded with the row of individual models."""
    rows = [row for row in results.rows if row.kind == "individual"]
    return [row.benchmark for row in rows if files.of_benchmark(row)]


def _installed() -> str:
    """Every installed distribution with its version, a line each."""
    found = {f"{each.name}=={each.version}" for each in distributions() if each.name}
    return "\n".join(sorted(found, key=str.lower)) + "\n"


def _title(results: RunResults) -> str:
    return f"{results.name} (seed {results.seed})"


@contextmanager
def _run(
    client: MlflowClient,
    experiment: str,
    name: str,
    start: int,
    tags: dict[str, str],
    existing: str | None = None,
) -> Iterator[str]:
    """A run that is finished at the end of the block; it is failed if the user interrupts.

    Args:
        client: Connected to the store.
        experiment: Its id.
        name: Of the run.
        start: When it began and ended, in milliseconds since 1970.
        tags: Of the run.
        existing: Id of a run that is there already.
    """
    if existing is None:
        tags = {**tags, "mlflow.source.name": "nan-merge"}
        title = " ".join(name.split())[:250]
        run = client.create_run(experiment, start_time=start, tags=tags, run_name=title)
        existing = run.info.run_id
    try:
        yield existing
    except Exception:
        raise  # the server itself may be gone, and to ask it once more would take long
    except BaseException:
        with suppress(Exception):
            client.set_terminated(existing, "FAILED")
        raise
    # A length would be that of the recording, and be taken for that of the evaluation.
    client.set_terminated(existing, end_time=start)


def _log(client: MlflowClient, run: str, metrics: dict[str, float], params: dict[str, Any]) -> None:
    """Log metrics and parameters in as few calls as MLflow takes them."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    known = {key: str(value)[:MAX_PARAM_LENGTH] for key, value in params.items() if value != ""}
    param_parts = list(_parts(Param(key, value) for key, value in known.items()))
    metric_parts = list(_parts(Metric(key, float(v), now, 0) for key, v in metrics.items()))
    for place in range(max(len(param_parts), len(metric_parts))):
        client.log_batch(
            run,
            metrics=metric_parts[place] if place < len(metric_parts) else (),
            params=param_parts[place] if place < len(param_parts) else (),
        )


def _log_path(client: MlflowClient, run: str, path: Path, kind: str) -> None:
    if path.is_dir():
        client.log_artifacts(run, str(path), kind)
    elif path.is_file():
        client.log_artifact(run, str(path), kind)


def _parts(items: Iterable[Any]) -> Iterator[list[Any]]:
    """MLflow takes a hundred at once."""
    every = list(items)
    for start in range(0, len(every), MAX_BATCH):
        yield every[start : start + MAX_BATCH]
