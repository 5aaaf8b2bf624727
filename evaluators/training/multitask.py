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
from evaluators.training.finetune import refuse_other_size, training_device
from evaluators.training.tuning import Saving, publish_trained, training_key, tune
from nan_merge.checkpoint import open_checkpoint
from nan_merge.fingerprint import fingerprint
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
    beta2: float = Field(default=0.98, gt=0, lt=1)
    """Of AdamW: how slowly its second moments forget; torch's own default is 0.999."""
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
    save_seconds: float | None = None,
) -> Iterator[TrainingProgress]:
    """Train the image tower of a pretrained CLIP on all tasks; its text tower stays as it is.

    The same seed gives the same bytes on the same machine with the same number of threads, also
    if the training was killed in between.

    Args:
        clip_folder: A whole CLIP in open_clip's layout, as ``pretrain_clip`` writes it.
        train_sets: The tasks; their images must have the tower's size.
        recipe: How to train.
        seed: Of batches and shifts.
        output: Folder of the image tower checkpoint; appears when training has ended.
        save_seconds: As of `finetune_image_tower`.

    Raises:
        OutputError: If ``output`` exists or cannot be written.
        CheckpointError: If ``clip_folder`` cannot be read.
        EvaluationError: If training diverges, or images have another size.
    """
    with publish_trained(output, save_seconds) as (staging, saving):
        clip = load_clip(clip_folder)
        for each in train_sets:
            refuse_other_size(each, clip.tower)
        key = training_key(
            clip=fingerprint(open_checkpoint(str(clip_folder))),
            images=[each.digest() for each in train_sets],
            recipe=recipe.model_dump(mode="json"),
            seed=seed,
        )
        for step, loss in _train(clip, train_sets, recipe, seed, saving, key):
            yield TrainingProgress(step, recipe.steps, loss, "all tasks")
        save_image_tower(clip.tower, staging)


def _train(
    clip: Clip,
    train_sets: Sequence[ImageSet],
    recipe: MultitaskRecipe,
    seed: int,
    saving: Saving | None,
    key: str,
) -> Iterator[tuple[int, float]]:
    tower, margin, device = clip.tower, recipe.largest_shift, training_device()
    heads = [zero_shot_head(clip, each.class_names, each.templates) for each in train_sets]
    visual, heads = place_tower(tower, device).visual, [head.to(device) for head in heads]
    padded = [padded_rows(each, margin) for each in train_sets]
    labels = [torch.from_numpy(each.labels) for each in train_sets]

    def loss_of(drawn: tuple[list[Tensor], Tensor]) -> Tensor:
        chosen, corners = drawn
        images = torch.cat([each(rows) for each, rows in zip(padded, chosen, strict=True)])
        pixels = normalise_pixels(cut_images(images, margin, corners).to(device), tower)
        # One pass for all tasks; a head is a matrix that embeddings are multiplied with.
        logits = image_logits(visual, torch.cat(heads), pixels)
        own = [each[rows].to(device) for each, rows in zip(labels, chosen, strict=True)]
        return mean_loss(logits, heads, own)

    draws = _draws([len(each) for each in labels], recipe, seed)
    yield from tune(visual, recipe, draws, loss_of, beta2=recipe.beta2, saving=saving, key=key)


def _draws(
    sizes: Sequence[int], recipe: MultitaskRecipe, seed: int
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Rows of each task, and corners of all their images, of every step."""
    generator = torch.Generator().manual_seed(seed)
    streams = [draw_batches(size, recipe.images_per_task, generator) for size in sizes]
    while True:
        chosen = [next(stream) for stream in streams]
        num_images = len(chosen) * recipe.images_per_task
        yield chosen, draw_corners(num_images, recipe.largest_shift, generator)


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
