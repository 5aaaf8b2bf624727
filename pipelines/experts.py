"""Train the run's own models: prepare data, pretrain a CLIP, fine-tune it on every task.

Everything is kept in the cache under a key of all that shaped it, so it is done once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from evaluators.backends.clip import model_config_path
from evaluators.image_sets import ImageSet, load_image_set
from evaluators.quickstart_images import image_set_path, load_quickstart_task
from evaluators.training.batches import TrainingProgress
from evaluators.training.finetune import FinetuneRecipe, finetune_image_tower
from evaluators.training.multitask import MultitaskRecipe, train_multitask_tower
from evaluators.training.pretrain import pretrain_clip
from nan_merge.fingerprint import digest_text
from nan_merge.publish import write_text_atomically
from nan_merge.recipe import ModelReference
from nan_merge.tasks import Task
from pipelines.config import Experts, RunConfig
from pipelines.workers import Workers

# Raise it when the training code would give other models from the same configuration.
TRAINING_VERSION = 1


@dataclass(frozen=True)
class TrainedExperts:
    """Where the models and the data lie.

    Attributes:
        clip: Folder of the whole pretrained CLIP.
        base: Folder of its image tower, the base model of every merge.
        models: The fine-tuned models.
        key: Digest of everything that shaped the models.
        multitask: A model that was trained on all tasks, if one was asked for.
    """

    clip: Path
    base: Path
    models: tuple[ModelReference, ...]
    key: str
    multitask: Path | None = None


def train_experts(config: RunConfig, experts: Experts, workers: Workers) -> TrainedExperts:
    """Make what is not in the cache yet, and say where everything lies."""
    data = data_folder(config.cache)
    digests = {
        task: load_image_set(path).digest()
        for task, path in prepare_sets(experts.tasks, "train", config.seed, data, workers).items()
    }
    key = _experts_key(experts, config.seed, digests)
    experts = with_shared_backbone(experts, config.cache)
    folder = config.cache / f"experts-{key[:16]}"
    clip = folder / "clip"
    _pretrain(experts, config.seed, data, clip, workers)
    _finetune(experts, config.seed, data, folder, workers)
    multitask = _train_multitask(experts, config.seed, data, folder, workers)
    return TrainedExperts(
        clip=clip,
        base=clip / "image_tower",
        models=tuple(
            ModelReference(path=str(folder / task), name=task, weight=1.0) for task in experts.tasks
        ),
        key=key,
        multitask=multitask,
    )


def with_shared_backbone(experts: Experts, cache: Path) -> Experts:
    """The same models, with a configuration of the user's own copied to where all workers see it.

    Workers on other nodes, or in other folders, would look for its path in vain.
    """
    if not experts.backbone.endswith(".json"):
        return experts
    text = Path(experts.backbone).read_text(encoding="utf-8")
    # In a folder of its own: the file's name is the model's.
    copy = cache / "backbones" / digest_text(text)[:16] / Path(experts.backbone).name
    if not copy.is_file():
        write_text_atomically(copy, text)
    return experts.model_copy(update={"backbone": str(copy)})


def data_folder(cache: Path) -> Path:
    """Where prepared image sets are kept."""
    return cache / "data"


def prepare_sets(
    names: Sequence[str], split: str, seed: int, data: Path, workers: Workers
) -> dict[str, Path]:
    """Files of image sets, built where they are missing."""
    paths = {name: image_set_path(name, split, seed, data) for name in names}
    missing = [name for name, path in paths.items() if not path.is_file()]
    tasks = [Task(f"{name}/{split}", build_data, (name, split, seed, data), 1) for name in missing]
    workers.run_tasks(f"Preparing {split} images", tasks)
    return paths


def _experts_key(experts: Experts, seed: int, digests: dict[str, str]) -> str:
    # A model of open_clip's own has no file; the version of open_clip stands for it.
    config = model_config_path(experts.backbone)
    is_file = experts.backbone.endswith(".json")
    # Of a file the content counts, and its name, which is the model's; not where it lies.
    name = config.name if is_file else experts.backbone
    content = {
        "training": TRAINING_VERSION,
        # The model of all tasks has a key of its own: nothing else is trained anew because of it.
        "experts": experts.model_dump(mode="json", exclude={"multitask"}) | {"backbone": name},
        "model_config": json.loads(config.read_bytes()) if config.is_file() else None,
        "seed": seed,
        "data": digests,
        "torch": version("torch"),
        "open_clip": version("open_clip_torch"),
    }
    return digest_text(json.dumps(content, sort_keys=True))


def _pretrain(experts: Experts, seed: int, data: Path, clip: Path, workers: Workers) -> None:
    if clip.is_dir():
        return
    arguments = (experts, seed, data, clip)
    total = experts.text.steps + experts.pretrain.steps
    workers.run_streams(
        "Pretraining a small CLIP",
        [Task("pretrain", run_pretraining, arguments, 1)],
        total,
        count_steps(),
    )


def _finetune(experts: Experts, seed: int, data: Path, folder: Path, workers: Workers) -> None:
    missing = [task for task in experts.tasks if not (folder / task).is_dir()]
    tasks = [
        Task(task, run_finetuning, (experts.finetune, task, seed, data, folder), 1)
        for task in missing
    ]
    total = experts.finetune.steps * len(missing)
    stage = f"Fine-tuning {len(missing)} models"
    workers.run_streams(stage, tasks, total, count_steps())


def _train_multitask(
    experts: Experts, seed: int, data: Path, folder: Path, workers: Workers
) -> Path | None:
    recipe = experts.multitask
    if recipe is None:
        return None
    key = digest_text(json.dumps(recipe.model_dump(mode="json"), sort_keys=True))
    output = folder / f"multitask-{key[:16]}"
    if not output.is_dir():
        arguments = (recipe, experts.tasks, seed, data, folder / "clip", output)
        tasks = [Task("all tasks", run_multitask_training, arguments, 1)]
        workers.run_streams("Training on all tasks", tasks, recipe.steps, count_steps())
    return output


def run_multitask_training(
    recipe: MultitaskRecipe, tasks: Sequence[str], seed: int, data: Path, clip: Path, output: Path
) -> Iterator[TrainingProgress]:
    """Task body: train the pretrained image tower on all tasks together."""
    train_sets = [_train_set(task, seed, data) for task in tasks]
    steps = train_multitask_tower(clip, train_sets, recipe, seed=seed, output=output)
    yield from _sparsely(on_one_thread(steps))


def count_steps() -> Callable[[int, TrainingProgress], tuple[int, str]]:
    """A function that turns "at step 40" into "20 further steps", for several trainings at once."""
    last: dict[int, int] = {}

    def since_last(place: int, progress: TrainingProgress) -> tuple[int, str]:
        steps = progress.step - last.get(place, 0)
        last[place] = progress.step
        return steps, f"{progress.stage}: loss {progress.loss:.3f}"

    return since_last


def build_data(task: str, split: str, seed: int, data: Path) -> None:
    """Task body: build one image set into the cache."""
    load_quickstart_task(task, split, seed=seed, cache=data)


def run_pretraining(
    experts: Experts, seed: int, data: Path, output: Path
) -> Iterator[TrainingProgress]:
    """Task body: pretrain on the training images of all tasks."""
    train_sets = [_train_set(task, seed, data) for task in experts.tasks]
    text, pretrain = experts.text, experts.pretrain
    steps = pretrain_clip(
        train_sets, text, pretrain, seed=seed, output=output, model=experts.backbone
    )
    yield from _sparsely(on_one_thread(steps))


def run_finetuning(
    recipe: FinetuneRecipe, task: str, seed: int, data: Path, folder: Path
) -> Iterator[TrainingProgress]:
    """Task body: fine-tune the pretrained image tower on one task."""
    train_set = _train_set(task, seed, data)
    steps = finetune_image_tower(
        folder / "clip", train_set, recipe, seed=seed, output=folder / task
    )
    yield from _sparsely(on_one_thread(steps))


def _train_set(task: str, seed: int, data: Path) -> ImageSet:
    return load_quickstart_task(task, "train", seed=seed, cache=data)


def on_one_thread(steps: Iterator[TrainingProgress]) -> Iterator[TrainingProgress]:
    """Train on one thread of this process."""
    import torch

    torch.set_num_threads(1)  # one worker per core; and the same sums on any number of cores
    yield from steps


def _sparsely(steps: Iterator[TrainingProgress]) -> Iterator[TrainingProgress]:
    """Every tenth step and the last: a message per step would cost more than it tells."""
    for progress in steps:
        if progress.step % 10 == 0 or progress.step == progress.num_steps:
            yield progress
