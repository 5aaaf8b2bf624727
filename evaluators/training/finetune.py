"""Fine-tune the image tower of a pretrained CLIP on one task; its text tower stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import Field
from torch.nn import functional

from evaluators.backends.clip import (
    ImageTower,
    image_logits,
    normalise_pixels,
    zero_shot_head,
)
from evaluators.backends.clip_checkpoints import load_clip, save_image_tower
from evaluators.image_sets import ImageSet
from evaluators.training.batches import (
    TrainingProgress,
    adamw,
    cosine_decay,
    draw_batches,
    pad_images,
    shift_images,
    take_step,
    warm_up,
)
from nan_merge.errors import EvaluationError
from nan_merge.publish import publish_folder
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
    warmup_steps: int = Field(default=10, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are shortened to this Euclidean norm."""
    largest_shift: int = Field(default=2, ge=0)
    """Random shift in each direction, in pixels."""


def finetune_image_tower(
    clip_folder: Path, train_set: ImageSet, recipe: FinetuneRecipe, *, seed: int, output: Path
) -> Iterator[TrainingProgress]:
    """Train only the image tower, against the frozen zero-shot head of the task.

    The same seed gives the same bytes on the same machine with the same number of threads.

    Args:
        clip_folder: A whole CLIP, as ``pretrain_clip`` writes it.
        train_set: The task; its images must have the tower's size.
        recipe: How to train.
        seed: Of batches and shifts.
        output: Folder of the image tower checkpoint; appears when training has ended.

    Raises:
        OutputError: If ``output`` exists or cannot be written.
        CheckpointError: If ``clip_folder`` cannot be read.
        EvaluationError: If training diverges, or images have another size.
    """
    with publish_folder(output) as staging:
        clip = load_clip(clip_folder)
        size = clip.tower.image_size
        if train_set.images.shape[1:3] != (size, size):
            raise EvaluationError(
                f"{train_set.name}: images are {train_set.images.shape[1:3]} pixels, but "
                f"{clip.tower.name} takes {size} x {size}; use evaluators.backends.clip.fit_images."
            )
        head = zero_shot_head(clip, train_set.class_names, train_set.templates)
        losses = _train(clip.tower, head, train_set, recipe, seed)
        for step, loss in enumerate(losses, start=1):
            yield TrainingProgress(step, recipe.steps, loss, train_set.name)
        save_image_tower(clip.tower, staging)


def _train(
    tower: ImageTower, head: torch.Tensor, train_set: ImageSet, recipe: FinetuneRecipe, seed: int
) -> Iterator[float]:
    generator = torch.Generator().manual_seed(seed)
    padded = pad_images(train_set, recipe.largest_shift)
    labels = torch.from_numpy(train_set.labels)
    batches = draw_batches(len(labels), recipe.batch_size, generator)
    optimizer = adamw(
        tower.visual.parameters(),
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
    )
    tower.visual.train()
    for step in range(recipe.steps):
        rows = next(batches)
        images = shift_images(padded[rows], recipe.largest_shift, generator)
        logits = image_logits(tower.visual, head, normalise_pixels(images, tower))
        loss = functional.cross_entropy(logits, labels[rows])
        share = warm_up(step, recipe.warmup_steps) * cosine_decay(step, recipe.steps)
        yield take_step(
            optimizer,
            loss,
            learning_rate=recipe.learning_rate * share,
            max_grad_norm=recipe.max_grad_norm,
        )
    tower.visual.eval()
