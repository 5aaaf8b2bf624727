"""Paths of a run file where other machines, or processes in other folders, look at them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from nan_merge.hub import HUB_ID
from nan_merge.model_reference import split_reference
from nan_merge.recipe import ConfigPlace, ModelReference, ModulePlace
from pipelines.config import Evaluate, MergeEntry, RunConfig
from pipelines.language_benchmarks import is_own_benchmark
from pipelines.language_config import BenchmarkSpec
from pipelines.sweep_config import SweepMerge

Entry = TypeVar("Entry", MergeEntry, SweepMerge)


def placed_at(config: RunConfig, at: PurePosixPath) -> RunConfig:
    """The run with every relative path taken from the folder ``at``; hub ids and URLs stay."""
    changes: dict[str, Any] = {
        "run_folder": Path(at / config.folder),
        "cache": Path(at / config.cache),
        "models": tuple(
            model.model_copy(update=_placed_model(model, at)) for model in config.models
        ),
    }
    for name in ("base", "clip"):
        if (value := getattr(config, name)) is not None:
            changes[name] = placed(value, at)
    if config.track.uri is not None:
        uri = placed_store(config.track.uri, at)
        changes["track"] = config.track.model_copy(update={"uri": uri})
    if config.evaluate.is_language or config.evaluate.clip_sets:
        changes["evaluate"] = _placed_data(config.evaluate, at)
    if texts := config.statistics.texts:
        there = {name: Path(at / path) for name, path in texts.items()}
        changes["statistics"] = config.statistics.model_copy(update={"texts": there})
    if any(table_of(entry) or places_of(entry) for entry in config.merges):
        entries = (_with_placed_table(entry, at) for entry in config.merges)
        changes["merges"] = tuple(_with_placed_places(entry, at) for entry in entries)
    sweep = config.sweep
    if sweep is not None and any(table_of(each) or places_of(each) for each in sweep.merges):
        swept = (_with_placed_table(entry, at) for entry in sweep.merges)
        placed_merges = tuple(_with_placed_places(entry, at) for entry in swept)
        changes["sweep"] = sweep.model_copy(update={"merges": placed_merges})
    return config.model_copy(update=changes)


def table_of(entry: MergeEntry | SweepMerge) -> str | None:
    """The file of coefficients that a merge names, if it does."""
    return entry.coefficients.table if entry.coefficients is not None else None


def places_of(entry: MergeEntry | SweepMerge) -> dict[str, str]:
    """Key of a merge -> the model that it names there and that is not merged."""
    places = {
        f"modules.{module}": source.path
        for module, source in entry.modules.items()
        if isinstance(source, ModulePlace)
    }
    return places | ({"config": entry.config.path} if isinstance(entry.config, ConfigPlace) else {})


def _with_placed_places(entry: Entry, at: PurePosixPath) -> Entry:
    modules = {
        module: ModulePlace(path=placed(source.path, at))
        if isinstance(source, ModulePlace)
        else source
        for module, source in entry.modules.items()
    }
    config = entry.config
    if isinstance(config, ConfigPlace):
        config = ConfigPlace(path=placed(config.path, at))
    changes = {"modules": modules, "config": config}
    # What was not written stays so: the run is sent as it was written.
    written = {key: value for key, value in changes.items() if key in entry.model_fields_set}
    return entry.model_copy(update=written)


def _placed_model(model: ModelReference, at: PurePosixPath) -> dict[str, str]:
    changes = {"path": placed(model.path, at)}
    if model.statistics is not None:
        changes["statistics"] = str(at / model.statistics)
    return changes


def _with_placed_table(entry: Entry, at: PurePosixPath) -> Entry:
    table = table_of(entry)
    if table is None or entry.coefficients is None:
        return entry
    there = entry.coefficients.model_copy(update={"table": str(at / table)})
    return entry.model_copy(update={"coefficients": there})


def _placed_data(wanted: Evaluate, at: PurePosixPath) -> Evaluate:
    """Folders of data, and files that describe benchmarks of one's own."""
    specs = tuple(_placed_benchmark(each, at) for each in wanted.benchmarks)
    changes: dict[str, Any] = {"benchmarks": specs}
    if wanted.data is not None:
        changes["data"] = Path(at / wanted.data)
    return wanted.model_copy(update=changes)


def _placed_benchmark(spec: str | BenchmarkSpec, at: PurePosixPath) -> str | BenchmarkSpec:
    if isinstance(spec, str):
        return str(at / spec) if is_own_benchmark(spec) else spec
    changes: dict[str, Any] = {}
    if is_own_benchmark(spec.name):
        changes["name"] = str(at / spec.name)
    if spec.data is not None:
        changes["data"] = Path(at / spec.data)
    return spec.model_copy(update=changes)


def placed(reference: str, at: PurePosixPath) -> str:
    """A model, or a model and its adapter, with relative folders taken from ``at``."""
    base, adapter = split_reference(reference)
    parts = [base] if adapter is None else [base, adapter]
    return "+".join(str(at / part) if _is_relative_folder(part) else part for part in parts)


def placed_store(uri: str, at: PurePosixPath) -> str:
    """An MLflow store, with the folder or SQLite file that it may name taken from ``at``.

    >>> placed_store("sqlite:///runs/mlflow.db", PurePosixPath("/shared"))
    'sqlite:////shared/runs/mlflow.db'
    >>> placed_store("http://mlflow:5000", PurePosixPath("/shared"))
    'http://mlflow:5000'
    """
    for scheme in ("sqlite:///", "file://", "file:", ""):
        if uri.startswith(scheme):
            path = uri.removeprefix(scheme)
            is_other = "://" in path or path.startswith("databricks")
            return uri if is_other else f"{scheme}{at / path}"
    raise AssertionError("every text starts with nothing")


def _is_relative_folder(part: str) -> bool:
    """Whether it is neither a whole path, nor a URL, nor the id of a model on the hub."""
    if "://" in part or part.startswith("~") or PurePosixPath(part).is_absolute():
        return False
    if part.startswith(".") or not HUB_ID.match(part):
        return True
    return Path(part).exists()  # `runs/mine` looks like a hub id, but is a folder here
