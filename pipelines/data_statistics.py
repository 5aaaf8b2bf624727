"""Gather the statistics that a run's merges read from data: once, one task per model.

They are kept in the cache under a key of all that shaped them: weights, data and recipe.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from evaluators.image_sets import load_image_set
from evaluators.statistics.causal import TextGatherRecipe, gather_causal_statistics, read_texts
from evaluators.statistics.images import gather_image_statistics
from evaluators.training.causal import CausalRecipe
from evaluators.training.exercises import Exercise, make_exercises
from nan_merge.config_messages import did_you_mean
from nan_merge.data_statistics import CALLED, open_data_statistics
from nan_merge.errors import ConfigError
from nan_merge.fingerprint import digest_text, fingerprint
from nan_merge.methods import METHODS
from nan_merge.methods.method import DataStatistic
from nan_merge.model_reference import open_model
from nan_merge.recipe import MergeRecipe, ModelReference
from nan_merge.tasks import Task
from pipelines.sweep_config import Range, SweepMerge
from pipelines.workers import Workers

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from pipelines.run import RunModels

# Raise it when the gathering code would give other statistics from the same data.
GATHER_VERSION = 1
STATISTICS_FOLDER = "statistics"


class StatisticsRecipe(TextGatherRecipe):
    """How statistics are gathered, and from what."""

    texts: dict[str, Path] = Field(default_factory=dict[str, Path])
    """For language models that the run does not train itself: name of a model -> JSON Lines file
    of its own training data, a text or `{prompt: ..., answer: ...}` a line."""


@dataclass(frozen=True)
class _Source:
    """What one model is shown: an image set, or texts."""

    digest: str
    image_set: Path | None = None
    texts: Sequence[Exercise] = ()


def needed_statistics(config: RunConfig) -> dict[DataStatistic, list[str]]:
    """Kind -> names of the models that some merge of the run reads it of."""
    wanted: list[tuple[str, Sequence[str] | None]] = [
        (entry.method.name, entry.models) for entry in config.merges
    ]
    for merge in config.sweep.merges if config.sweep is not None else ():
        wanted += _of_sweep(merge)
    needed: dict[DataStatistic, list[str]] = {}
    for name, models in wanted:
        kind = METHODS[name].reads if name in METHODS else None
        if kind is not None:
            own = needed.setdefault(kind, [])
            own += [m for m in models or config.model_names() if m not in own]
    return needed


def _of_sweep(merge: SweepMerge) -> Iterator[tuple[str, Sequence[str] | None]]:
    """Methods of a sweep's entry, each with every group of models that it may merge."""
    methods: list[Any] = [merge.method.name] if merge.method is not None else []
    for key in ("method", "method.name"):
        varied = merge.vary.get(key, ())
        methods += [] if isinstance(varied, Range) else varied
    groups = merge.vary.get("models", ())
    listed = [merge.models] if isinstance(groups, Range) or not groups else groups
    for method in methods:
        name = method.get("name") if isinstance(method, dict) else method
        for models in listed:
            yield str(name), models


def gather_statistics(
    config: RunConfig,
    models: RunModels,
    workers: Workers,
    image_sets: Callable[[str, Sequence[str]], dict[str, Path]],
) -> dict[str, dict[str, str]]:
    """Kind -> model's name -> folder of its statistics; what is missing is gathered.

    Args:
        config: The run.
        models: Its models.
        workers: Where to work.
        image_sets: ("train", tasks) -> where each one's images lie.

    Raises:
        ConfigError: If nothing says what data belongs to a model.
        NanMergeError: If a model or its data cannot be read.
    """
    found: dict[str, dict[str, str]] = {}
    for kind, names in needed_statistics(config).items():
        wanted = [model for model in models.models if model.name in names]
        given = {m.name: m.statistics for m in wanted if m.statistics and _kind_of(m) == kind}
        lacking = [model for model in wanted if model.name not in given]
        sources = _sources(config, lacking, image_sets) if lacking else {}
        tasks: list[Task] = []
        for model in lacking:
            source = sources[model.name]
            key = _key(config, kind, model, source)
            folder = config.cache / STATISTICS_FOLDER / f"{kind}-{key[:16]}"
            given[model.name] = str(folder)
            if not folder.is_dir():
                tasks.append(_task(config, models, kind, model, source, folder))
        workers.run_tasks(f"Gathering {CALLED[kind]}", tasks)
        found[kind] = {name: folder for name, folder in given.items() if folder}
    return found


def with_statistics(recipe: MergeRecipe, found: dict[str, dict[str, str]]) -> MergeRecipe:
    """A recipe whose models name the statistics that its method reads."""
    folders = found.get(METHODS[recipe.method.name].reads or "", {})
    models = tuple(
        model.model_copy(update={"statistics": folders.get(model.name, model.statistics)})
        for model in recipe.models
    )
    return recipe.model_copy(update={"models": models})


def _kind_of(model: ModelReference) -> str:
    return open_data_statistics(str(model.statistics), model.name).kind


def _key(config: RunConfig, kind: str, model: ModelReference, source: _Source) -> str:
    content = {
        "gather": GATHER_VERSION,
        "kind": kind,
        "model": fingerprint(open_model(model.path, model.name)),
        "data": source.digest,
        "recipe": config.statistics.model_dump(mode="json", exclude={"texts"}),
        "seed": config.seed,
        "torch": version("torch"),
    }
    return digest_text(json.dumps(content, sort_keys=True))


def _task(
    config: RunConfig,
    models: RunModels,
    kind: DataStatistic,
    model: ModelReference,
    source: _Source,
    output: Path,
) -> Task:
    folder, recipe, seed = open_model(model.path, model.name).folder, config.statistics, config.seed
    if source.image_set is None:
        arguments = (kind, str(folder), source.texts, recipe, seed, str(output))
        return Task(model.name, gather_causal_statistics, arguments, 1)
    clip, images = str(models.clip), str(source.image_set)
    arguments = (kind, str(folder), clip, images, recipe, seed, str(output))
    return Task(model.name, gather_image_statistics, arguments, 1)


def _sources(
    config: RunConfig,
    models: Sequence[ModelReference],
    image_sets: Callable[[str, Sequence[str]], dict[str, Path]],
) -> dict[str, _Source]:
    """Model's name -> what it was trained on, as far as the run knows."""
    if config.evaluate.is_language:
        return {model.name: _texts_of(config, model.name) for model in models}
    names, tasks = [model.name for model in models], _image_tasks(config)
    if unknown := [name for name in names if name not in tasks]:
        near = did_you_mean(unknown[0], tasks, ".")
        raise ConfigError(
            f"Statistics are gathered from the training images of the task that a model is called "
            f"like, but {unknown[0]} is none of {', '.join(tasks)}{near} Give the model the `name` "
            "of its task, or `statistics: FOLDER`."
        )
    paths = image_sets("train", names)
    return {name: _Source(load_image_set(path).digest(), path) for name, path in paths.items()}


def _image_tasks(config: RunConfig) -> tuple[str, ...]:
    trained = config.experts.tasks if config.experts is not None else ()
    return tuple(dict.fromkeys((*config.evaluate.image_tasks, *trained)))


def _texts_of(config: RunConfig, name: str) -> _Source:
    trained = config.fine_tunes.models if config.fine_tunes is not None else {}
    if name in config.statistics.texts:
        texts = read_texts(config.statistics.texts[name])
    elif isinstance(recipe := trained.get(name), CausalRecipe):
        texts = make_exercises(recipe.exercises, recipe.num_exercises, config.seed)
    else:
        raise ConfigError(
            f"A merge reads statistics of {name}, but nothing says what texts to gather them from. "
            f"Set `statistics.texts.{name}` to a JSON Lines file of its training data, or give the "
            "model `statistics: FOLDER`."
        )
    texts = texts[: config.statistics.num_examples]
    content = json.dumps([[each.prompt, each.answer] for each in texts])
    return _Source(digest_text(content), texts=tuple(texts))
