"""Fine-tune the image tower of a pretrained CLIP on one task; its text tower stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from evaluators.backends.clip import (
    ImageTower,
    image_logits,
    normalise_pixels,
    place_tower,
    zero_shot_head,
)
from evaluators.backends.clip_checkpoints import load_clip, save_image_tower
from evaluators.image_sets import ImageSet
from evaluators.training.batches import (
    TrainingProgress,
    cut_images,
    draw_batches,
    draw_corners,
    padded_rows,
)
from evaluators.training.tuning import Saving, publish_trained, training_key, tune
from nan_merge.checkpoint import open_checkpoint
from nan_merge.errors import EvaluationError
from nan_merge.fingerprint import fingerprint
from nan_merge.schema import StrictModel


class FinetuneRecipe(StrictModel):
    """How a fine-tune is trained: gently, so that task vectors stay short enough to add up."""

    steps: int = Field(default=120, gt=0)
    """Optimiser steps."""
    batch_size: int = Field(default=96, gt=0)
    """Images in a step."""
    learning_rate: float = Field(default=6e-5, gt=0)
    """Of AdamW at its peak; it rises linearly, then decays as a cosine to 0."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Of AdamW: share of a weight lost in a step, per unit of learning rate."""
    beta2: float = Field(default=0.98, gt=0, lt=1)
    """Of AdamW: how slowly its second moments forget; torch's own default is 0.999."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are shortened to this Euclidean norm."""
    largest_shift: int = Field(default=2, ge=0)
    """Random shift in each direction, in pixels."""


def finetune_image_tower(
    clip_folder: Path,
    train_set: ImageSet,
    recipe: FinetuneRecipe,
    *,
    seed: int,
    output: Path,
    save_seconds: float | None = None,
) -> Iterator[TrainingProgress]:
    """Train only the image tower, against the frozen zero-shot head of the task.

    The scheme of task arithmetic (Ilharco et al., arXiv 2212.04089; mlfoundations/task_vectors,
    ``src/finetune.py``), on images that were scaled and cropped once and are only shifted here.
    The same seed gives the same bytes on the same machine with the same number of threads, also
    if the training was killed in between. It trains on a GPU where torch sees one.

    Args:
        clip_folder: A whole CLIP in open_clip's layout, as ``pretrain_clip`` writes it.
        train_set: The task; its images must have the tower's size.
        recipe: How to train.
        seed: Of batches and shifts.
        output: Folder of the image tower checkpoint; appears when training has ended.
        save_seconds: Keep the training's state so often, beside ``output``, and go on from what
            an earlier attempt kept; None for neither.

    Raises:
        OutputError: If ``output`` exists or cannot be written.
        CheckpointError: If ``clip_folder`` cannot be read.
        EvaluationError: If training diverges, or images have another size.
    """
    with publish_trained(output, save_seconds) as (staging, saving):
        clip = load_clip(clip_folder)
        refuse_other_size(train_set, clip.tower)
        key = training_key(
            clip=fingerprint(open_checkpoint(str(clip_folder))),
            images=[train_set.digest()],
            recipe=recipe.model_dump(mode="json"),
            seed=seed,
        )
        head = zero_shot_head(clip, train_set.class_names, train_set.templates)
        for step, loss in _train(clip.tower, head, train_set, recipe, seed, saving, key):
            yield TrainingProgress(step, recipe.steps, loss, train_set.name)
        save_image_tower(clip.tower, staging)


def refuse_other_size(train_set: ImageSet, tower: ImageTower) -> None:
    """See that the images of a set have the tower's size.

    Raises:
        EvaluationError: If they do not.
    """
    size = tower.image_size
    if train_set.images.shape[1:3] != (size, size):
        raise EvaluationError(
            f"{train_set.name}: images are {train_set.images.shape[1:3]} pixels, but "
            f"{tower.name} takes {size} x {size}; use evaluators.backends.clip.fit_images."
        )


def training_device() -> str:
    """``cuda`` where torch sees a GPU, which a task of Ray does only if it was given one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _train(
    tower: ImageTower,
    head: Tensor,
    train_set: ImageSet,
    recipe: FinetuneRecipe,
    seed: int,
    saving: Saving | None,
    key: str,
) -> Iterator[tuple[int, float]]:
    device, margin = training_device(), recipe.largest_shift
    visual, head = place_tower(tower, device).visual, head.to(device)
    labels, padded = torch.from_numpy(train_set.labels), padded_rows(train_set, margin)

    def loss_of(drawn: tuple[Tensor, Tensor]) -> Tensor:
        rows, corners = drawn
        images = cut_images(padded(rows), margin, corners).to(device)
        logits = image_logits(visual, head, normalise_pixels(images, tower))
        return functional.cross_entropy(logits, labels[rows].to(device))

    draws = _draws(len(labels), recipe, seed)
    yield from tune(visual, recipe, draws, loss_of, beta2=recipe.beta2, saving=saving, key=key)


def _draws(num_images: int, recipe: FinetuneRecipe, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and corners of every step."""
    generator = torch.Generator().manual_seed(seed)
    for rows in draw_batches(num_images, recipe.batch_size, generator):
        yield rows, draw_corners(len(rows), recipe.largest_shift, generator)
