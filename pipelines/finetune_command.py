"""Train the models of a run file, and nothing else: what `nan-merge run` would begin with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.table import Table

from nan_merge.publish import publish_folder, refuse_taken
from pipelines.config import MULTITASK, RunConfig
from pipelines.events import EVENTS_NAME, EventLog
from pipelines.experts import train_experts
from pipelines.interrupt import noticing_interrupts
from pipelines.language_experts import train_language_models
from pipelines.paths import placed_at
from pipelines.preflight import check_training
from pipelines.progress import RunProgress
from pipelines.run_folder import folder_names, refuse_other_run, sole_writer
from pipelines.workers import Workers

BASE = "base"


def finetune_command(config: RunConfig, console: Console, output: Path | None = None) -> None:
    """Train a run's models, or go on with that; say where they lie and what to do with them.

    Args:
        config: A run file with `experts` or `fine_tunes`.
        console: Where to print.
        output: Folder that gets a copy of each model, in a folder of its name; the base model's
            is called `base`.

    Raises:
        NanMergeError: With a message for the user.
    """
    check_training(config)
    names = folder_names([BASE, *config.model_names(), *_multitask(config)])
    if output is not None:
        for name in names.values():
            refuse_taken(output / name)
    if config.cluster.address != "local":  # workers of a cluster stand in folders of their own
        config = placed_at(config, PurePosixPath(Path.cwd()))
    with noticing_interrupts() as interrupted, sole_writer(config.folder) as held:
        refuse_other_run(config.folder, config.name, config.seed)
        events = EventLog(config.folder.resolve() / EVENTS_NAME)
        with events.run(config.name, config.seed):
            models = _train(config, RunProgress(console, events), (interrupted, held.check))
            if output is not None:
                models = _copied(models, output, names)
    _say(console, models, config)


def _multitask(config: RunConfig) -> list[str]:
    trains = config.experts is not None and config.experts.multitask is not None
    return [MULTITASK] if trains else []


def _train(
    config: RunConfig, progress: RunProgress, checks: Sequence[Callable[[], None]]
) -> dict[str, Path]:
    """Name of a model -> its checkpoint; the base comes first."""
    with Workers(config.cluster, progress, config.folder, checks) as workers:
        if config.fine_tunes is not None:
            base, tuned = train_language_models(
                config.fine_tunes, config.seed, config.cache, workers
            )
            return {BASE: base} | {model.name: Path(model.path) for model in tuned}
        assert config.experts is not None, "checked before anything ran"
        trained = train_experts(config, config.experts, workers)
        models = {BASE: Path(trained.base)}
        models |= {model.name: Path(model.path) for model in trained.models}
        return models | ({MULTITASK: trained.multitask} if trained.multitask else {})


def _copied(models: Mapping[str, Path], output: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """Copies of the models, each of which appears when it is whole."""
    copies = {name: output / names[name] for name in models}
    for name, source in models.items():
        with publish_folder(copies[name]) as staging:
            shutil.copytree(source, staging, dirs_exist_ok=True)
    return copies


def _say(console: Console, models: Mapping[str, Path], config: RunConfig) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("model", no_wrap=True)
    table.add_column("checkpoint", overflow="fold")
    for name, path in models.items():
        table.add_row(name, str(path))
    console.print(table)
    console.print(
        f"Merge them by a recipe (base: {models[BASE]}), or merge and evaluate them with "
        f"`nan-merge run` and the same run file; they are not trained again.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
