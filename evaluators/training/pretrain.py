"""Pretrain a small CLIP on all tasks at once: the base model of the quickstart.

Two choices leave the fine-tunes something to gain and the merge something to combine. The
learning rate never decays, so the base is no minimum of the mixture of tasks; and its images
are corrupted, so every task improves on clean ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from evaluators.backends.clip import (
    Clip,
    build_clip,
    image_logits,
    normalise_pixels,
    zero_shot_head,
)
from evaluators.backends.clip_checkpoints import save_clip, save_image_tower
from evaluators.image_sets import ImageSet
from evaluators.training.batches import (
    TrainingProgress,
    adamw,
    draw_batches,
    pad_images,
    shift_images,
    take_step,
    warm_up,
)
from evaluators.training.text_tower import TextRecipe, train_text_tower
from nan_merge.publish import publish_folder
from nan_merge.schema import StrictModel

QUICKSTART_MODEL = "nan-merge-mini"
LARGEST_LOGIT_SCALE = 4.6052  # ln 100, where CLIP clips it too


class PretrainRecipe(StrictModel):
    """How the image tower is pretrained: on shifted and corrupted images of all tasks."""

    steps: int = Field(default=800, gt=0)
    """Optimiser steps."""
    images_per_task: int = Field(default=20, gt=0)
    """Images of each task in a step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of AdamW, after the warm-up; it does not decay."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Of AdamW: share of a weight lost in a step, per unit of learning rate."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are shortened to this Euclidean norm."""
    largest_shift: int = Field(default=2, ge=0)
    """Random shift in each direction, in pixels."""
    lowest_contrast: float = Field(default=0.3, gt=0, le=1)
    """Each image is multiplied by a random factor between this and 1."""
    channel_offset_std: float = Field(default=0.5, ge=0)
    """Standard deviation of a random offset of each colour, in normalised pixels."""
    largest_noise_std: float = Field(default=0.6, ge=0)
    """Each image gets white noise of a standard deviation up to this, in normalised pixels."""


def pretrain_clip(
    train_sets: Sequence[ImageSet],
    text_recipe: TextRecipe,
    recipe: PretrainRecipe,
    *,
    seed: int,
    output: Path,
    model: str | Path = QUICKSTART_MODEL,
) -> Iterator[TrainingProgress]:
    """Train the text tower, lock it, then train the image tower against its prompts.

    The same seed gives the same bytes on the same machine with the same number of threads.

    Args:
        train_sets: The tasks; each step takes equally many images of each.
        text_recipe: Of the first stage.
        recipe: Of the second stage.
        seed: Of initial weights, batches and corruption.
        output: Folder that appears when training has ended: a whole CLIP in open_clip's local
            layout, and ``image_tower/``, the checkpoint that is fine-tuned and merged.
        model: What ``build_clip`` takes.

    Raises:
        OutputError: If ``output`` exists or cannot be written.
        EvaluationError: If training diverges.
    """
    num_steps = text_recipe.steps + recipe.steps
    with publish_folder(output) as staging:
        clip = build_clip(model, seed=seed)
        step = 0
        for loss in train_text_tower(clip, train_sets, text_recipe):
            step += 1
            yield TrainingProgress(step, num_steps, loss, "text tower")
        for loss in _train_image_tower(clip, train_sets, recipe, seed):
            step += 1
            yield TrainingProgress(step, num_steps, loss, "image tower")
        save_clip(clip, staging)
        save_image_tower(clip.tower, staging / "image_tower")


def _train_image_tower(
    clip: Clip, train_sets: Sequence[ImageSet], recipe: PretrainRecipe, seed: int
) -> Iterator[float]:
    """Cross-entropy within each task, summed over tasks in one pass through the tower."""
    generator = torch.Generator().manual_seed(seed)
    margin, scale = recipe.largest_shift, clip.model.logit_scale
    padded = [pad_images(each, margin) for each in train_sets]
    labels = [torch.from_numpy(each.labels) for each in train_sets]
    streams = [draw_batches(len(each), recipe.images_per_task, generator) for each in labels]
    directions = [  # of unit length: the scale is still being learned
        functional.normalize(zero_shot_head(clip, each.class_names, each.templates), dim=1)
        for each in train_sets
    ]
    trained = [*clip.tower.visual.parameters(), scale]
    optimizer = adamw(trained, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay)
    clip.tower.visual.train()
    for step in range(recipe.steps):
        chosen = [next(stream) for stream in streams]
        images = torch.cat([each[rows] for each, rows in zip(padded, chosen, strict=True)])
        pixels = normalise_pixels(shift_images(images, margin, generator), clip.tower)
        pixels = _corrupt(pixels, recipe, generator)
        logits = scale.exp() * image_logits(clip.tower.visual, torch.cat(directions), pixels)
        loss = _loss_within_tasks(logits, directions, labels, chosen)
        rate = recipe.learning_rate * warm_up(step, recipe.warmup_steps)
        yield take_step(optimizer, loss, learning_rate=rate, max_grad_norm=recipe.max_grad_norm)
        scale.data.clamp_(max=LARGEST_LOGIT_SCALE)
    clip.tower.visual.eval()


def _loss_within_tasks(
    logits: Tensor, directions: list[Tensor], labels: list[Tensor], chosen: list[Tensor]
) -> Tensor:
    """Mean over tasks; each image is compared with the classes of its own task only."""
    blocks = zip(
        logits.split([len(rows) for rows in chosen]), directions, labels, chosen, strict=True
    )
    losses, first_class = [], 0
    for block, task_directions, task_labels, rows in blocks:
        own = block[:, first_class : first_class + len(task_directions)]
        losses.append(functional.cross_entropy(own, task_labels[rows]))
        first_class += len(task_directions)
    return torch.stack(losses).mean()


def _corrupt(pixels: Tensor, recipe: PretrainRecipe, generator: torch.Generator) -> Tensor:
    """Lower the contrast, shift the colours and add noise, each image by its own amount."""
    num_images = len(pixels)
    lowest = recipe.lowest_contrast
    contrast = lowest + (1 - lowest) * torch.rand(num_images, 1, 1, 1, generator=generator)
    offset = recipe.channel_offset_std * torch.randn(num_images, 3, 1, 1, generator=generator)
    noise_std = recipe.largest_noise_std * torch.rand(num_images, 1, 1, 1, generator=generator)
    noise = torch.randn(pixels.shape, generator=generator)
    return torch.addcmul(torch.addcmul(offset, contrast, pixels), noise_std, noise)
