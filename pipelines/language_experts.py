"""Fine-tune the run's own language models: once, kept in the cache under all that shaped them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from evaluators.training.batches import TrainingProgress
from evaluators.training.causal import CausalRecipe, finetune_language_model
from evaluators.training.smollm2 import unpack_smollm2
from nan_merge.fingerprint import digest_text
from nan_merge.recipe import ModelReference
from nan_merge.tasks import Task
from pipelines.config import FineTunes
from pipelines.experts import count_steps, on_one_thread
from pipelines.run_folder import folder_names
from pipelines.workers import Workers

# Raise it when the training code would give other models from the same configuration.
TRAINING_VERSION = 1


def train_language_models(
    wanted: FineTunes, seed: int, cache: Path, workers: Workers
) -> tuple[Path, tuple[ModelReference, ...]]:
    """The base and the fine-tuned models; what is not in the cache yet is made.

    Each fine-tuned model is kept under a key of its own, so that another one costs nothing more.
    """
    base = cache / f"{wanted.base}-{_key({'base': wanted.base})}"
    if not base.is_dir():
        workers.run_tasks("Unpacking the base model", [Task(wanted.base, unpack_base, (base,), 1)])
    names = folder_names(list(wanted.models))
    folders = {
        name: cache / f"fine-tunes-{_model_key(wanted, recipe, seed)}" / names[name]
        for name, recipe in wanted.models.items()
    }
    missing = [name for name, folder in folders.items() if not folder.is_dir()]
    tasks = [
        Task(name, run_finetuning, (base, wanted.models[name], name, seed, folders[name]), 1)
        for name in missing
    ]
    total = sum(wanted.models[name].steps for name in missing)
    stage = f"Fine-tuning {len(missing)} language models"
    workers.run_streams(stage, tasks, total, count_steps())
    return base, tuple(
        ModelReference(path=str(folder), name=name) for name, folder in folders.items()
    )


def unpack_base(output: Path) -> None:
    """Task body: write the base model's checkpoint."""
    unpack_smollm2(output)


def run_finetuning(
    base: Path, recipe: CausalRecipe, name: str, seed: int, output: Path
) -> Iterator[TrainingProgress]:
    """Task body: fine-tune the base on one kind of exercises."""
    steps = finetune_language_model(base, recipe, name=name, seed=seed, output=output)
    yield from on_one_thread(steps)


def _model_key(wanted: FineTunes, recipe: CausalRecipe, seed: int) -> str:
    return _key({"base": wanted.base, "recipe": recipe.model_dump(mode="json"), "seed": seed})


def _key(content: dict[str, object]) -> str:
    code = {
        "training": TRAINING_VERSION,
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    return digest_text(json.dumps({**content, **code}, sort_keys=True))[:16]
