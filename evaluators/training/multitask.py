"""Traditional multi-task learning: fine-tune one image tower on all tasks together.

The baseline that merging is measured against (Caruana, "Multitask Learning", 1997): each step
takes as many images of every task, each against the frozen zero-shot head of its own task.
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
from nan_merge.publish import publish_folder
from nan_merge.schema import StrictModel


class MultitaskRecipe(StrictModel):
    """How the multi-task model is trained; by default for as many images as seven fine-tunes see
    in two thirds of their steps.
    """

    steps: int = Field(default=240, gt=0)
    """Optimiser steps."""
    images_per_task: int = Field(default=24, gt=0)
    """Images of each task in a step."""
    learning_rate: float = Field(default=1.2e-4, gt=0)
    """Of AdamW at its peak; it rises linearly, then decays as a cosine to 0."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Of AdamW: share of a weight lost in a step, per unit of learning rate."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are shortened to this Euclidean norm."""
    largest_shift: int = Field(default=2, ge=0)
    """Random shift in each direction, in pixels."""


def train_multitask_tower(
    clip_folder: Path,
    train_sets: Sequence[ImageSet],
    recipe: MultitaskRecipe,
    *,
    seed: int,
    output: Path,
) -> Iterator[TrainingProgress]:
    """Train the image tower of a pretrained CLIP on all tasks; its text tower stays as it is.

    The same seed gives the same bytes on the same machine with the same number of threads.

    Args:
        clip_folder: A whole CLIP, as ``pretrain_clip`` writes it.
        train_sets: The tasks; their images must have the tower's size.
        recipe: How to train.
        seed: Of batches and shifts.
        output: Folder of the image tower checkpoint; appears when training has ended.

    Raises:
        OutputError: If ``output`` exists or cannot be written.
        CheckpointError: If ``clip_folder`` cannot be read.
        EvaluationError: If training diverges.
    """
    with publish_folder(output) as staging:
        clip = load_clip(clip_folder)
        for step, loss in enumerate(_train(clip, train_sets, recipe, seed), start=1):
            yield TrainingProgress(step, recipe.steps, loss, "all tasks")
        save_image_tower(clip.tower, staging)


def _train(
    clip: Clip, train_sets: Sequence[ImageSet], recipe: MultitaskRecipe, seed: int
) -> Iterator[float]:
    generator = torch.Generator().manual_seed(seed)
    tower, margin = clip.tower, recipe.largest_shift
    padded = [pad_images(each, margin) for each in train_sets]
    labels = [torch.from_numpy(each.labels) for each in train_sets]
    heads = [zero_shot_head(clip, each.class_names, each.templates) for each in train_sets]
    streams = [draw_batches(len(each), recipe.images_per_task, generator) for each in labels]
    optimizer = adamw(
        tower.visual.parameters(),
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
    )
    tower.visual.train()
    for step in range(recipe.steps):
        chosen = [next(stream) for stream in streams]
        images = torch.cat([each[rows] for each, rows in zip(padded, chosen, strict=True)])
        pixels = normalise_pixels(shift_images(images, margin, generator), tower)
        # One pass for all tasks; a head is a matrix that embeddings are multiplied with.
        logits = image_logits(tower.visual, torch.cat(heads), pixels)
        share = warm_up(step, recipe.warmup_steps) * cosine_decay(step, recipe.steps)
        yield take_step(
            optimizer,
            mean_loss(logits, heads, [own[rows] for own, rows in zip(labels, chosen, strict=True)]),
            learning_rate=recipe.learning_rate * share,
            max_grad_norm=recipe.max_grad_norm,
        )
    tower.visual.eval()


def mean_loss(logits: Tensor, heads: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """Mean over tasks of the cross-entropy within each.

    Args:
        logits: (images of all tasks, classes of all tasks), tasks in order.
        heads: Of each task, (classes, embed_dim).
        labels: Of each task's images, int64.
    """
    losses: list[Tensor] = []
    first_image = first_class = 0
    for head, own in zip(heads, labels, strict=True):
        images = slice(first_image, first_image + len(own))
        classes = slice(first_class, first_class + len(head))
        losses.append(functional.cross_entropy(logits[images, classes], own))
        first_image, first_class = images.stop, classes.stop
    return torch.stack(losses).mean()
