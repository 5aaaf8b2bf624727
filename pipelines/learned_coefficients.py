"""Merges whose coefficients AdaMerging learns: once, kept in the cache, then merged like others.

What a method leaves of each model's task vector is found by the engine itself: it merges every
model alone with coefficient 1. That is exact for methods that are linear in their coefficients.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from evaluators.image_sets import load_image_set
from evaluators.training.adamerging import AdamergingRecipe, learn_coefficients
from evaluators.training.batches import TrainingProgress
from nan_merge.coefficient_reading import measure_coefficients
from nan_merge.coefficient_table import CoefficientTable
from nan_merge.fingerprint import digest_text, fingerprint
from nan_merge.methods.task_arithmetic import TaskArithmeticOptions
from nan_merge.methods.ties import TiesOptions
from nan_merge.model_reference import open_model
from nan_merge.plan import plan_merge
from nan_merge.recipe import CoefficientSpec, MergeRecipe
from nan_merge.tasks import Task
from pipelines.workers import Workers

if TYPE_CHECKING:
    from pipelines.config import MergeEntry, RunConfig
    from pipelines.run import RunModels

# Raise it when the learning code would give other coefficients from the same data.
LEARNING_VERSION = 1
ADAMERGING_FOLDER = "adamerging"
Merge = tuple[str, MergeRecipe, Path]  # name, recipe, checkpoint folder


@dataclass(frozen=True)
class _Learning:
    """What is learned for one merge, and where it goes."""

    entry: MergeEntry
    recipe: MergeRecipe
    start: CoefficientTable
    image_sets: dict[str, Path]
    output: Path


def refuse_unlearnable(entry: MergeEntry) -> None:
    """Refuse AdaMerging over a method that is not linear in its coefficients.

    Raises:
        ValueError: With the methods that are.
    """
    method = entry.method
    linear = isinstance(method, TaskArithmeticOptions) or (
        isinstance(method, TiesOptions) and method.order == "after" and method.disjoint == "sum"
    )
    if entry.adamerging is not None and not linear:
        raise ValueError(
            f"{entry.name}: AdaMerging learns factors on what a method leaves of each task vector, "
            "so `method` must be `task_arithmetic`, or, for AdaMerging++, "
            "`{name: ties, order: after, disjoint: sum}`"
        )


def learn_for_merges(
    config: RunConfig,
    models: RunModels,
    workers: Workers,
    make_merges: Callable[[Sequence[Merge], Workers], None],
    image_sets: Callable[[str, Sequence[str]], dict[str, Path]],
) -> dict[str, Path]:
    """Name of a merge -> table of its coefficients; what is missing is learned.

    Args:
        config: The run.
        models: Its models.
        workers: Where to work.
        make_merges: Makes merges that are not there yet.
        image_sets: ("test" or "train", tasks) -> where each one's images lie.

    Raises:
        NanMergeError: If something cannot be read, or learning diverges.
    """
    wanted = [entry for entry in config.merges if entry.adamerging is not None]
    if not wanted:
        return {}
    assert models.clip is not None, "the run file is refused where models are no image towers"
    found = [_learning(config, models, entry, workers, image_sets) for entry in wanted]
    tasks: list[Task] = []
    missing = [each for each in found if not each.output.is_file()]
    for each in missing:
        columns = _columns(each, workers, make_merges)
        images = {name: str(path) for name, path in each.image_sets.items()}
        arguments = (
            str(models.clip), str(models.base), columns, images, each.start,
            each.entry.adamerging, config.seed, str(each.output),
        )  # fmt: skip
        tasks.append(Task(each.entry.name, run_learning, arguments, 1))
    total = sum(each.entry.adamerging.steps for each in missing if each.entry.adamerging)
    from pipelines.experts import count_steps

    workers.run_streams("Learning coefficients", tasks, total, count_steps())
    return {each.entry.name: each.output for each in found}


def with_learned(entry: MergeEntry, recipe: MergeRecipe, found: dict[str, Path]) -> MergeRecipe:
    """A recipe that takes its coefficients from what was learned, if anything was."""
    if entry.name not in found:
        return recipe
    spec = CoefficientSpec(source="table", table=str(found[entry.name]))
    return recipe.model_copy(update={"coefficients": spec})


def run_learning(
    clip: str,
    base: str,
    columns: dict[str, str],
    image_sets: dict[str, str],
    start: CoefficientTable,
    recipe: AdamergingRecipe,
    seed: int,
    output: str,
) -> Iterator[TrainingProgress]:
    """Task body: learn the coefficients of one merge."""
    steps = learn_coefficients(
        clip, base, columns, image_sets, start, recipe, seed=seed, output=output
    )
    for progress in steps:
        if progress.step % 10 == 0 or progress.step == progress.num_steps:
            yield progress


def _learning(
    config: RunConfig,
    models: RunModels,
    entry: MergeEntry,
    workers: Workers,
    image_sets: Callable[[str, Sequence[str]], dict[str, Path]],
) -> _Learning:
    assert entry.adamerging is not None
    recipe = entry.recipe(models.base, models.models, config.seed)
    plan = plan_merge(recipe)
    start = measure_coefficients(
        plan, lambda tasks: workers.run_tasks("Measuring norms", tasks, "statistics")
    )
    images = image_sets(entry.adamerging.images, config.evaluate.image_tasks)
    assert plan.base is not None
    content = {
        "learning": LEARNING_VERSION,
        "recipe": entry.adamerging.model_dump(mode="json"),
        "method": recipe.method.model_dump(mode="json"),
        "models": [fingerprint(each) for each in (plan.base, *plan.models)],
        "names": [model.name for model in recipe.models],
        "start": start.as_json(),
        "clip": fingerprint(open_model(str(models.clip), "clip")),
        "data": {name: load_image_set(path).digest() for name, path in images.items()},
        "seed": config.seed,
        "torch": version("torch"),
    }
    key = digest_text(json.dumps(content, sort_keys=True))[:16]
    output = config.cache / ADAMERGING_FOLDER / f"{key}.json"
    return _Learning(entry, recipe, start, images, output)


def _columns(
    learning: _Learning,
    workers: Workers,
    make_merges: Callable[[Sequence[Merge], Workers], None],
) -> dict[str, str]:
    """Model's name -> folder of the base plus what the method leaves of its task vector."""
    recipe, names = learning.recipe, [model.name for model in learning.recipe.models]
    if isinstance(recipe.method, TaskArithmeticOptions):
        return {m.name: str(open_model(m.path, m.name).folder) for m in recipe.models}
    folder = learning.output.with_suffix("")
    outputs: list[Merge] = []
    for place, name in enumerate(names):
        alone = tuple(1.0 if other == place else 0.0 for other in range(len(names)))
        spec = CoefficientSpec(source="fixed", values=alone)
        outputs.append(
            (name, recipe.model_copy(update={"coefficients": spec}), folder / f"{place}")
        )
    make_merges(outputs, workers)
    return {name: str(path) for name, _, path in outputs}
