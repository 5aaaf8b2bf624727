"""The whole story on one page: models, merges, evaluation, tracking, report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console

from nan_merge.checkpoint import open_checkpoint
from nan_merge.fingerprint import fingerprint
from nan_merge.manifest import MANIFEST_NAME, read_manifest
from nan_merge.measure import model_norms
from nan_merge.merge import merge_checkpoints
from nan_merge.plan import MergePlan, plan_merge
from nan_merge.publish import write_text_atomically
from nan_merge.recipe import MergeRecipe, ModelReference
from nan_merge.tasks import Task
from pipelines.collect import ablation_pairs, environment_facts, merge_summary
from pipelines.config import MULTITASK, PRETRAINED, MergeEntry, RunConfig
from pipelines.data_statistics import gather_statistics, with_statistics
from pipelines.evaluate import Candidate
from pipelines.events import EVENTS_NAME, EventLog
from pipelines.experts import train_experts
from pipelines.hub_layout import in_hub_layout, loss_notes, losses_of_copies
from pipelines.image_data import prepare_image_sets
from pipelines.image_towers import prepare_towers
from pipelines.interrupt import noticing_interrupts
from pipelines.language_experts import train_language_models
from pipelines.language_workers import with_model_resources
from pipelines.learned_coefficients import learn_for_merges, with_learned
from pipelines.paths import placed_at
from pipelines.preflight import check_run
from pipelines.progress import RunProgress
from pipelines.publishing import publish_results
from pipelines.report import write_seeds_report
from pipelines.results import RunResults
from pipelines.run_folder import folder_names, refuse_other_run, sole_writer
from pipelines.scoring import everything, open_scoring
from pipelines.table import seed_differences, seeds_table
from pipelines.workers import Workers


@dataclass(frozen=True)
class RunModels:
    """What a run merges and scores.

    Attributes:
        base: The base model.
        models: The fine-tuned models.
        clip: For image towers: folder of the whole pretrained CLIP whose text tower makes the
            heads.
        test_sets: For image towers: benchmark -> file or folder of its test images.
        notes: What a reader of the table should know of the images.
        multitask: For image towers: a model that was trained on all tasks, if one was.
        statistics: Kind -> model's name -> folder of what data said of it, for the methods that
            read it.
        learned: Name of a merge -> table of coefficients that AdaMerging learned for it.
    """

    base: str
    models: tuple[ModelReference, ...]
    clip: Path | None = None
    test_sets: dict[str, Path] = field(default_factory=dict[str, Path])
    notes: tuple[str, ...] = ()
    multitask: Path | None = None
    statistics: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    learned: dict[str, Path] = field(default_factory=dict[str, Path])


def run_config(config: RunConfig, *, seeds: int = 1, console: Console) -> list[RunResults]:
    """Run a run file, or continue it where it stood; print the table and what to look at.

    Args:
        config: The run.
        seeds: Run it this often, with seeds counted up from the config's.
        console: Where to print.

    Raises:
        NanMergeError: With a message for the user.
    """
    check_run(config)
    if config.cluster.address != "local":  # workers of a cluster stand in folders of their own
        config = placed_at(config, PurePosixPath(Path.cwd()))
    runs = [config]
    for seed in range(config.seed + 1, config.seed + seeds):
        folder = Path(f"{config.folder}-seed{seed}")
        runs.append(config.model_copy(update={"seed": seed, "run_folder": folder}))
    for run in runs:
        refuse_other_run(run.folder, run.name, run.seed)
    found: list[RunResults] = []
    for place, run in enumerate(runs):
        earlier = [each.folder for each in runs[:place]]
        with noticing_interrupts() as interrupted, sole_writer(run.folder) as held:
            refuse_other_run(run.folder, run.name, run.seed)
            events = EventLog(run.folder.resolve() / EVENTS_NAME)
            checks = (interrupted, held.check)
            with events.run(run.name, run.seed):
                found.append(_once_of(run)(run, RunProgress(console, events), checks, earlier))
    if seeds > 1:
        together = Path(f"{config.folder}-{seeds}seeds")
        report = write_seeds_report(found, together)
        console.print(seeds_table(found, console.width))
        if pairs := ablation_pairs(config.merges):
            console.print(seed_differences(found, pairs))
        console.print(f"Report over seeds: {report}", markup=False, highlight=False)
    return found


def _once_of(config: RunConfig) -> Callable[..., RunResults]:
    """What does the run: the page below, or that of sweeps, which stands on it."""
    if config.sweep is None:
        return _run_once
    from pipelines.sweep import run_sweep

    return run_sweep


def _run_once(
    config: RunConfig,
    progress: RunProgress,
    checks: Sequence[Callable[[], None]],
    earlier: Sequence[Path],
) -> RunResults:
    started = time.monotonic()
    folder = config.folder
    with open_workers(config, progress, checks) as workers:
        models = prepare_models(config, workers)
        merges = merges_of(config, models)
        recipes = [recipe for _, recipe, _ in merges]
        losses = losses_of_copies(models.base, models.models, recipes)
        make_merges(merges, workers)
        norms = norms_of(folder, models, workers, like=recipes)
        candidates = list_candidates(config, models, merges, earlier, like=recipes)
        scored = open_scoring(config, models, workers).collect(merges, candidates, everything)
    summaries = [
        merge_summary(name, recipe, read_manifest(path / MANIFEST_NAME), path.relative_to(folder))
        for name, recipe, path in merges
    ]
    results = RunResults(
        name=config.name,
        seed=config.seed,
        rows=scored.rows,
        merges=tuple(summaries),
        facts=environment_facts()
        | scored.facts
        | losses
        | {"time of this run": f"{time.monotonic() - started:.0f} s, with what was cached"},
        config_yaml=config.text(),
        model_norms=norms,
    )
    results = scored.with_averages(results)
    publish_results(
        results, config, candidates, merges, progress, [*scored.notes, *loss_notes(losses)]
    )
    return results


def open_workers(
    config: RunConfig, progress: RunProgress, checks: Sequence[Callable[[], None]]
) -> Workers:
    """The run's workers; model actors get what their backend needs."""
    cluster = config.cluster
    if config.evaluate.is_language:
        cluster = with_model_resources(cluster, config.evaluate.backend)
    return Workers(cluster, progress, config.folder, checks)


def prepare_models(config: RunConfig, workers: Workers) -> RunModels:
    """The run's models, trained here or named in the run file, and what merges need from data."""
    models = _find_models(config, workers)

    def image_sets(split: str, names: Sequence[str]) -> dict[str, Path]:
        assert models.clip is not None, "only image towers ask for images"
        return prepare_image_sets(config, names, split, models.clip, workers).paths

    statistics = gather_statistics(config, models, workers, image_sets)
    learned = learn_for_merges(config, models, workers, make_merges, image_sets)
    return replace(models, statistics=statistics, learned=learned)


def _find_models(config: RunConfig, workers: Workers) -> RunModels:
    if config.fine_tunes is not None:
        base, tuned = train_language_models(config.fine_tunes, config.seed, config.cache, workers)
        return RunModels(str(base), tuned)
    if config.evaluate.is_language:
        assert config.base is not None, "checked before anything ran"
        return RunModels(config.base, config.models)
    if config.experts is not None:
        trained = train_experts(config, config.experts, workers)
        models = RunModels(trained.base, trained.models, trained.clip, multitask=trained.multitask)
    else:
        towers = prepare_towers(config, workers)
        models = RunModels(towers.base, towers.models, towers.clip)
    assert models.clip is not None, "image towers come with a CLIP"
    tasks = config.evaluate.image_tasks
    images = prepare_image_sets(config, tasks, "test", models.clip, workers)
    return replace(models, test_sets=images.paths, notes=images.notes)


def merges_of(config: RunConfig, models: RunModels) -> list[tuple[str, MergeRecipe, Path]]:
    """The merges under `merges` in the run file: (name, recipe, checkpoint folder)."""
    folders, checkpoints = folders_of(config, models), config.folder / "checkpoints"
    return [
        (
            entry.name,
            recipe_of(entry, models, config.seed),
            checkpoints / folders[entry.name],
        )
        for entry in config.merges
    ]


def recipe_of(entry: MergeEntry, models: RunModels, seed: int) -> MergeRecipe:
    """The recipe of a merge over the run's models, with what was gathered and learned for it."""
    recipe = entry.recipe(models.base, models.models, seed)
    return with_learned(entry, with_statistics(recipe, models.statistics), models.learned)


def make_merges(
    outputs: Sequence[tuple[str, MergeRecipe, Path]],
    workers: Workers,
    statistics: Path | None = None,
) -> None:
    """Make merges together, those over the same models in one reading; see `merge_checkpoints`."""

    def run_tasks(tasks: Sequence[Task]) -> list[Any]:
        label = tasks[0].label if tasks else ""
        if label == "merge":
            number = len(tasks[0].arguments[0])  # those that are merged in one reading
            name = f"Merging {number} checkpoint{'' if number == 1 else 's'}"
            return workers.run_tasks(name, tasks, "merge")
        names = {"norms": "Measuring norms", "magnitudes": "Counting magnitudes"}
        names |= {"thresholds": "Finding thresholds", "signs": "Counting signs"}
        names |= {"kept sums": "Summing magnitudes"}
        return workers.run_tasks(names.get(label, label), tasks, "statistics")

    merge_checkpoints(
        [(recipe, path) for _, recipe, path in outputs],
        run_tasks,
        workers=workers.processes("merge"),
        statistics_workers=workers.processes("statistics"),
        replace=True,
        statistics=statistics,
    )


def folders_of(config: RunConfig, models: RunModels) -> dict[str, str]:
    """Name of a model or merge -> what its folders in the run folder are called."""
    names = [model.name for model in models.models]
    names += [MULTITASK] if models.multitask is not None else []
    return folder_names([PRETRAINED, *names, *(entry.name for entry in config.merges)])


def list_candidates(
    config: RunConfig,
    models: RunModels,
    merges: Sequence[tuple[str, MergeRecipe, Path]],
    earlier: Sequence[Path] = (),
    like: Sequence[MergeRecipe] = (),
) -> list[Candidate]:
    """Every model to score: the base, the fine-tuned models, the merges.

    What the same run with other seeds answered, in the folders ``earlier``, is not asked again.
    Models that cannot be asked as they lie get the config of the recipes ``like``.
    """
    folders, predictions = folders_of(config, models), config.folder / "predictions"

    def loadable(base: str | None, model: ModelReference) -> tuple[str, Path]:
        own, name = open_checkpoint(model.path).folder, folders[model.name]
        return model.name, in_hub_layout(base, model, own, config.folder, name, like)

    found = [loadable(None, ModelReference(path=models.base, name=PRETRAINED))]
    found += [loadable(models.base, model) for model in models.models]
    found += [(MULTITASK, models.multitask)] if models.multitask is not None else []
    found += [(name, path) for name, _, path in merges]
    return [
        Candidate(
            name,
            path,
            predictions / folders[name],
            earlier=tuple(each / "predictions" / folders[name] for each in earlier),
        )
        for name, path in found
    ]


def norms_of(
    folder: Path,
    models: RunModels,
    workers: Workers,
    like: Sequence[MergeRecipe] = (),
) -> dict[str, dict[str, float]]:
    """Norms of weights and task vectors for the plots, kept in the run folder.

    Of the tensors that the first of ``like`` merges: models that not all hold the same tensors
    need to be told what becomes of the others.
    """
    content = {"base": models.base, "models": models.models, "method": "task_arithmetic"}
    if like:
        first = like[0]
        content |= {"modules": first.modules, "missing": first.missing, "config": first.config}
    recipe = MergeRecipe.model_validate(content)
    plan = plan_merge(recipe)
    path, key = folder / "norms.json", _norms_key(plan)
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return kept["norms"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # missing or damaged: a lost file costs only time
    norms = model_norms(plan, lambda tasks: workers.run_tasks("Norms", tasks, "statistics"))
    write_text_atomically(path, json.dumps({"key": key, "norms": norms}, indent=1))
    return norms


def _norms_key(plan: MergePlan) -> dict[str, str]:
    """What the norms are of: the content of every model, by the name that the plots show."""
    base = {"": fingerprint(plan.base)} if plan.base is not None else {}
    return base | {model.name: fingerprint(model) for model in plan.models}
