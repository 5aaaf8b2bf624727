"""Train the run's own image towers: pretrain a CLIP or take one, fine-tune it on every task.

Everything is kept in the cache under a key of all that shaped it, so it is done once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from evaluators.backends.clip import model_config_path
from evaluators.image_sets import load_image_set
from evaluators.quickstart_images import load_quickstart_task
from evaluators.training.batches import TrainingProgress
from evaluators.training.finetune import FinetuneRecipe, finetune_image_tower
from evaluators.training.multitask import MultitaskRecipe, train_multitask_tower
from evaluators.training.pretrain import pretrain_clip
from evaluators.training.tuning import state_path
from nan_merge.checkpoint import open_checkpoint
from nan_merge.fingerprint import digest_text, fingerprint
from nan_merge.publish import write_text_atomically
from nan_merge.recipe import ModelReference
from nan_merge.tasks import Task
from pipelines.config import Experts, RunConfig
from pipelines.image_data import prepare_image_sets
from pipelines.image_towers import prepare_towers
from pipelines.quickstart_data import data_folder, prepare_sets
from pipelines.workers import Workers

# Raise it when the training code would give other models from the same configuration.
TRAINING_VERSION = 1
NOT_IN_KEY = {"multitask", "save_seconds"}
"""What shapes none of the fine-tunes: the model of all tasks has a key of its own."""


@dataclass(frozen=True)
class TrainedExperts:
    """Where the models lie.

    Attributes:
        clip: Folder of the whole pretrained CLIP.
        base: Folder of its image tower, the base model of every merge.
        models: The fine-tuned models.
        multitask: A model that was trained on all tasks, if one was asked for.
    """

    clip: Path
    base: str
    models: tuple[ModelReference, ...]
    multitask: Path | None = None


def train_experts(config: RunConfig, experts: Experts, workers: Workers) -> TrainedExperts:
    """Make what is not in the cache yet, and say where everything lies.

    Raises:
        CheckpointError: If the run's `clip` is missing, damaged or pickled code.
        DataError: If an image set is missing, or has classes or images that cannot be used.
        EvaluationError: If training diverges.
        OutputError: If the disk is full or not writable.
    """
    if config.clip is None:
        return _from_nothing(config, experts, workers)
    towers = prepare_towers(config, workers)
    sets = prepare_image_sets(config, experts.tasks, "train", towers.clip, workers).paths
    start = fingerprint(open_checkpoint(str(towers.clip)))
    digests = {task: load_image_set(path).digest() for task, path in sets.items()}
    folders: dict[str, Path] = {}
    for task, digest in digests.items():
        recipe = experts.finetune.model_dump(mode="json")
        key = _key({"clip": start, "finetune": recipe, "seed": config.seed, "data": digest})
        folders[task] = config.cache / f"fine-tunes-{key[:16]}" / task
    key = _key({"clip": start, "seed": config.seed, "data": digests})
    multitask = _multitask_folder(experts, config.cache / f"experts-{key[:16]}")
    train_towers(experts, config.seed, towers.clip, sets, folders, multitask, workers)
    return TrainedExperts(towers.clip, towers.base, _references(folders), multitask)


def _from_nothing(config: RunConfig, experts: Experts, workers: Workers) -> TrainedExperts:
    data = data_folder(config.cache)
    sets = prepare_sets(experts.tasks, "train", config.seed, data, workers)
    digests = {task: load_image_set(path).digest() for task, path in sets.items()}
    key = _experts_key(experts, config.seed, digests)
    experts = with_shared_backbone(experts, config.cache)
    folder = config.cache / f"experts-{key[:16]}"
    clip, folders = folder / "clip", {task: folder / task for task in experts.tasks}
    _pretrain(experts, config.seed, data, clip, workers)
    multitask = _multitask_folder(experts, folder)
    train_towers(experts, config.seed, clip, sets, folders, multitask, workers)
    return TrainedExperts(clip, str(clip / "image_tower"), _references(folders), multitask)


def _references(folders: Mapping[str, Path]) -> tuple[ModelReference, ...]:
    return tuple(
        ModelReference(path=str(folder), name=task, weight=1.0) for task, folder in folders.items()
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


def _experts_key(experts: Experts, seed: int, digests: dict[str, str]) -> str:
    # A model of open_clip's own has no file; the version of open_clip stands for it.
    config = model_config_path(experts.backbone)
    is_file = experts.backbone.endswith(".json")
    # Of a file the content counts, and its name, which is the model's; not where it lies.
    name = config.name if is_file else experts.backbone
    content = {
        "experts": experts.model_dump(mode="json", exclude=NOT_IN_KEY) | {"backbone": name},
        "model_config": json.loads(config.read_bytes()) if config.is_file() else None,
        "seed": seed,
        "data": digests,
    }
    return _key(content)


def _key(content: Mapping[str, object]) -> str:
    code = {
        "training": TRAINING_VERSION,
        "torch": version("torch"),
        "open_clip": version("open_clip_torch"),
    }
    return digest_text(json.dumps({**content, **code}, sort_keys=True))


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


def train_towers(
    experts: Experts,
    seed: int,
    clip: Path,
    sets: Mapping[str, Path],
    folders: Mapping[str, Path],
    multitask: Path | None,
    workers: Workers,
) -> None:
    """Train image towers from a CLIP, one task of Ray each; those that are there stay as they are.

    Args:
        experts: How.
        seed: Of batches and shifts.
        clip: Folder of the whole pretrained CLIP.
        sets: Task -> its training images.
        folders: Task -> folder of the image tower to fine-tune on it.
        multitask: Folder of the image tower to train on all tasks, if there shall be one.
        workers: Where to train.
    """
    rest = (experts.save_seconds, workers.processes("train"))
    tune, missing, num_steps = experts.finetune, list[Path](), 0
    tasks: list[Task] = []
    for name, folder in folders.items():
        if not folder.is_dir():
            arguments = (tune, sets[name], seed, clip, folder, *rest)
            tasks.append(Task(name, run_finetuning, arguments, tune.steps * tune.batch_size))
            missing.append(folder)
            num_steps += tune.steps
    stage = f"Fine-tuning {len(missing)} models"
    together = experts.multitask
    if together is not None and multitask is not None and not multitask.is_dir():
        arguments = (together, list(sets.values()), seed, clip, multitask, *rest)
        num_images = together.steps * together.images_per_task * len(sets)
        tasks.append(Task("all tasks", run_multitask_training, arguments, num_images))
        stage = f"{stage} and one on all tasks" if missing else "Training on all tasks"
        missing.append(multitask)
        num_steps += together.steps
    workers.run_streams(training_stage(stage, missing), tasks, num_steps, count_steps())


def training_stage(name: str, outputs: Sequence[Path]) -> str:
    """The name of a stage that trains models, for people; it tells of those that go on."""
    begun = sum(state_path(output).is_file() for output in outputs)
    return f"{name}, {begun} from where they stood" if begun else name


def _multitask_folder(experts: Experts, folder: Path) -> Path | None:
    """Where the model of all tasks is kept, if one was asked for."""
    if experts.multitask is None:
        return None
    recipe = experts.multitask.model_dump(mode="json")
    return folder / f"multitask-{digest_text(json.dumps(recipe, sort_keys=True))[:16]}"


def run_multitask_training(
    recipe: MultitaskRecipe,
    sets: Sequence[Path],
    seed: int,
    clip: Path,
    output: Path,
    save_seconds: float,
    num_threads: int,
) -> Iterator[TrainingProgress]:
    """Task body: train the pretrained image tower on all tasks together."""
    steps = train_multitask_tower(
        clip,
        [load_image_set(path) for path in sets],
        recipe,
        seed=seed,
        output=output,
        save_seconds=save_seconds,
    )
    yield from _sparsely(on_threads(num_threads, steps))


def count_steps() -> Callable[[int, TrainingProgress], tuple[int, str]]:
    """A function that turns "at step 40" into "20 further steps", for several trainings at once."""
    last: dict[int, int] = {}

    def since_last(place: int, progress: TrainingProgress) -> tuple[int, str]:
        steps = progress.step - last.get(place, 0)
        last[place] = progress.step
        return steps, f"{progress.stage}: loss {progress.loss:.3f}"

    return since_last


def run_pretraining(
    experts: Experts, seed: int, data: Path, output: Path
) -> Iterator[TrainingProgress]:
    """Task body: pretrain on the training images of all tasks."""
    train_sets = [
        load_quickstart_task(task, "train", seed=seed, cache=data) for task in experts.tasks
    ]
    text, pretrain = experts.text, experts.pretrain
    steps = pretrain_clip(
        train_sets, text, pretrain, seed=seed, output=output, model=experts.backbone
    )
    yield from _sparsely(on_one_thread(steps))


def run_finetuning(
    recipe: FinetuneRecipe,
    train_set: Path,
    seed: int,
    clip: Path,
    output: Path,
    save_seconds: float,
    num_threads: int,
) -> Iterator[TrainingProgress]:
    """Task body: fine-tune the pretrained image tower on one task."""
    images = load_image_set(train_set)
    steps = finetune_image_tower(
        clip, images, recipe, seed=seed, output=output, save_seconds=save_seconds
    )
    yield from _sparsely(on_threads(num_threads, steps))


def on_one_thread(steps: Iterator[TrainingProgress]) -> Iterator[TrainingProgress]:
    """Train on one thread of this process."""
    yield from on_threads(1, steps)  # one worker per core; and the same sums on any machine


def on_threads(number: int, steps: Iterator[TrainingProgress]) -> Iterator[TrainingProgress]:
    """Train on as many threads of this process as the task has cores."""
    import torch

    torch.set_num_threads(number)
    yield from steps


def _sparsely(steps: Iterator[TrainingProgress]) -> Iterator[TrainingProgress]:
    """Every tenth step and the last: a message per step would cost more than it tells."""
    for progress in steps:
        if progress.step % 10 == 0 or progress.step == progress.num_steps:
            yield progress
