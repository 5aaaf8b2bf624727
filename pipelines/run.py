"""The whole story on one page: models, merges, evaluation, tracking, report."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from evaluators.quickstart_images import QUICKSTART_TASKS
from nan_merge.errors import ConfigError
from nan_merge.manifest import MANIFEST_NAME, read_manifest
from nan_merge.measure import model_norms
from nan_merge.merge import merge_checkpoints
from nan_merge.plan import plan_merge
from nan_merge.publish import write_text_atomically
from nan_merge.recipe import MergeRecipe, ModelReference
from nan_merge.tasks import Task
from pipelines.collect import (
    PRETRAINED,
    ablation_pairs,
    environment_facts,
    merge_summary,
    result_rows,
)
from pipelines.config import RunConfig
from pipelines.evaluate import Candidate, evaluate_candidates, image_benchmarks
from pipelines.experts import data_folder, prepare_sets, train_experts
from pipelines.progress import RunProgress
from pipelines.report import write_report, write_seeds_report
from pipelines.results import RunResults, write_results
from pipelines.table import results_table, seed_differences, seeds_table
from pipelines.tracking import TrackingError, comparison_path, track_run
from pipelines.workers import Workers


@dataclass(frozen=True)
class RunModels:
    """What a run merges and scores.

    Attributes:
        base: The base model.
        models: The fine-tuned models.
        clip: Folder of the whole pretrained CLIP whose text tower makes the heads.
        test_sets: Benchmark -> ``.npz`` file of its test images.
    """

    base: str
    models: tuple[ModelReference, ...]
    clip: Path
    test_sets: dict[str, Path]


def run_config(
    config: RunConfig, config_yaml: str, *, seeds: int = 1, console: Console
) -> list[RunResults]:
    """Run a run file, or continue it where it stood; print the table and what to look at.

    Args:
        config: The run.
        config_yaml: Its text with overrides, kept with the results.
        seeds: Run it this often, with seeds counted up from the config's.
        console: Where to print.

    Raises:
        NanMergeError: With a message for the user.
    """
    found: list[RunResults] = []
    for number in range(seeds):
        folder = (
            config.folder if number == 0 else Path(f"{config.folder}-seed{config.seed + number}")
        )
        update = {"seed": config.seed + number, "run_folder": folder}
        found.append(_run_once(config.model_copy(update=update), config_yaml, console))
    if seeds > 1:
        together = Path(f"{config.folder}-{seeds}seeds")
        report = write_seeds_report(found, together)
        console.print(seeds_table(found, console.width))
        if pairs := ablation_pairs(config.merges):
            console.print(seed_differences(found, pairs))
        console.print(f"Report over seeds: {report}", markup=False, highlight=False)
    return found


def _run_once(config: RunConfig, config_yaml: str, console: Console) -> RunResults:
    progress = RunProgress(console)
    started = time.monotonic()
    folder = config.folder
    write_text_atomically(folder / "config.yaml", config_yaml)
    with Workers(config.cluster, progress) as workers:
        models = prepare_models(config, workers)
        merges = merge_all(config, models, workers)
        norms = norms_of(folder, models, workers)
        names = config.evaluate.benchmarks
        benchmarks = image_benchmarks(models.clip, models.test_sets, names, workers)
        candidates = list_candidates(config, models, merges)
        scores = evaluate_candidates(candidates, benchmarks, config.evaluate.batch_size, workers)
    summaries = [
        merge_summary(name, recipe, read_manifest(path / MANIFEST_NAME), path.relative_to(folder))
        for name, recipe, path in merges
    ]
    recipes = [(name, recipe) for name, recipe, _ in merges]
    digests = {f"digest of {benchmark.name}": benchmark.digest[:16] for benchmark in benchmarks}
    results = RunResults(
        name=config.name,
        seed=config.seed,
        rows=result_rows(scores, names, models.models, recipes),
        merges=tuple(summaries),
        facts=environment_facts()
        | digests
        | {"time of this run": f"{time.monotonic() - started:.0f} s, with what was cached"},
        config_yaml=config_yaml,
        model_norms=norms,
    )
    _publish(results, config, candidates, merges, progress)
    return results


def prepare_models(config: RunConfig, workers: Workers) -> RunModels:
    """The run's models: trained here, or named in the run file."""
    unknown = [name for name in config.evaluate.benchmarks if name not in QUICKSTART_TASKS]
    if unknown:
        raise ConfigError(
            f"evaluate.benchmarks: no benchmark is called {', '.join(unknown)}; "
            f"have {', '.join(QUICKSTART_TASKS)}."
        )
    names = config.evaluate.benchmarks
    data = data_folder(config.cache)
    test_sets = prepare_sets(names, "test", config.seed, data, workers)
    if config.experts is not None:
        trained = train_experts(config, config.experts, workers)
        return RunModels(str(trained.base), trained.models, trained.clip, test_sets)
    if config.base is None or config.clip is None:
        raise ConfigError(
            "A run over your own image towers needs `base` (the pretrained tower) and `clip` (the "
            "folder of the whole pretrained CLIP, whose text tower makes the zero-shot heads)."
        )
    return RunModels(config.base, config.models, Path(config.clip), test_sets)


def merge_all(
    config: RunConfig, models: RunModels, workers: Workers
) -> list[tuple[str, MergeRecipe, Path]]:
    """Make every merge of the run that is not there yet: (name, recipe, checkpoint folder)."""
    merges = [
        (entry.name, entry.recipe(models.base, models.models, config.seed), slug(entry.name))
        for entry in config.merges
    ]
    slugs = [slug(PRETRAINED), *(slug(model.name) for model in models.models)]
    slugs += [folder for _, _, folder in merges]
    twice = sorted({folder for folder in slugs if slugs.count(folder) > 1})
    if twice:
        raise ConfigError(f"Two models or merges would share the folder {twice[0]!r}; rename one.")
    outputs = [
        (name, recipe, config.folder / "checkpoints" / folder) for name, recipe, folder in merges
    ]

    def run_tasks(tasks: Sequence[Task]) -> list[Any]:
        stages = {"norms": "Measuring norms", "magnitudes": "Counting magnitudes"}
        stages |= {"thresholds": "Finding thresholds", "signs": "Counting signs"}
        stage = stages.get(tasks[0].label if tasks else "", f"Merging {len(outputs)} checkpoints")
        return workers.run_tasks(stage, tasks)

    merge_checkpoints([(recipe, path) for _, recipe, path in outputs], run_tasks, replace=True)
    return outputs


def slug(name: str) -> str:
    """A merge's name as a folder's name."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "merge"


def list_candidates(
    config: RunConfig, models: RunModels, merges: Sequence[tuple[str, MergeRecipe, Path]]
) -> list[Candidate]:
    """Every model to score: the base, the fine-tuned models, the merges."""
    found = [(PRETRAINED, Path(models.base))]
    found += [(model.name, Path(model.path)) for model in models.models]
    found += [(name, path) for name, _, path in merges]
    predictions = config.folder / "predictions"
    return [Candidate(name, path, predictions / slug(name)) for name, path in found]


def norms_of(folder: Path, models: RunModels, workers: Workers) -> dict[str, dict[str, float]]:
    """Norms of weights and task vectors for the plots, kept in the run folder."""
    recipe = MergeRecipe.model_validate(
        {"base": models.base, "models": models.models, "method": "task_arithmetic"}
    )
    path, key = folder / "norms.json", [models.base, *(model.path for model in models.models)]
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["models"] == key:
            return kept["norms"]
    norms = model_norms(plan_merge(recipe), lambda tasks: workers.run_tasks("Norms", tasks))
    write_text_atomically(path, json.dumps({"models": key, "norms": norms}, indent=1))
    return norms


def _publish(
    results: RunResults,
    config: RunConfig,
    candidates: Sequence[Candidate],
    merges: Sequence[tuple[str, MergeRecipe, Path]],
    progress: RunProgress,
) -> None:
    """Write the results, record them, and print them."""
    folder = config.folder
    rows = write_results(results, folder)
    report = write_report(results, folder)
    uri = ""
    if config.track.mlflow:
        predictions = {item.name: item.predictions for item in candidates}
        manifests = {name: path / MANIFEST_NAME for name, _, path in merges}
        try:
            with progress.stage("Recording in MLflow", 1) as bar:
                uri = track_run(
                    results, folder, config.track, manifests=manifests, predictions=predictions
                )
                bar.advance()
        except TrackingError as error:
            progress.say(f"warning: {error}")
    progress.console.print(results_table(results, progress.console.width))
    progress.say(f"\nResults   {rows}\nReport    {report}   (open it in a browser)")
    progress.say(f"Show      {command('nan-merge')} show {folder}")
    if uri:
        page = comparison_path(results, folder, config.track)
        progress.say(f"MLflow    {command('mlflow')} ui --backend-store-uri {uri}")
        progress.say(f"          then open http://127.0.0.1:5000{page}")


def command(name: str) -> str:
    """How to call a command of this environment from the shell that is open now."""
    own = Path(sys.prefix) / "bin" / name
    if shutil.which(name) == str(own) or not own.exists():
        return name
    with suppress(ValueError):
        return str(own.relative_to(Path.cwd()))
    return str(own)
