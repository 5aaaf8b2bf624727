"""Statistics of image towers on images of their own task, against its frozen zero-shot head."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evaluators.backends.clip import (
    ImageTower,
    fit_images,
    image_logits,
    normalise_pixels,
    zero_shot_head,
)
from evaluators.backends.clip_checkpoints import load_clip, load_image_tower
from evaluators.image_sets import ImageSet, load_image_set
from evaluators.statistics.fisher import log_likelihood
from evaluators.statistics.gather import GatherRecipe, Subject, gather
from nan_merge.methods.method import DataStatistic
from nan_merge.tasks import report_progress


def gather_image_statistics(
    kind: DataStatistic,
    tower: str,
    clip: str,
    image_set: str,
    recipe: GatherRecipe,
    seed: int,
    output: str,
) -> None:
    """Task body: gather the statistics of one image tower.

    The same seed gives the same bytes on the same machine with the same number of threads.

    Args:
        kind: Which statistics.
        tower: Folder of its checkpoint.
        clip: Folder of the whole pretrained CLIP whose text tower makes the head.
        image_set: ``.npz`` file of training images of its task.
        recipe: How to gather.
        seed: Chooses the images and draws labels.
        output: Folder to write.

    Raises:
        NanMergeError: If something cannot be read or written.
    """
    torch.set_num_threads(1)  # one worker per core; and the same sums on any number of cores
    images = load_image_set(Path(image_set))
    head = None
    if kind == "fisher":
        head = zero_shot_head(load_clip(Path(clip)), images.class_names, images.templates)
    loaded = load_image_tower(Path(tower))
    subject = image_subject(loaded, head, images, recipe, seed)
    facts = {"data": images.digest(), "seed": seed, "labels": recipe.labels, "task": images.name}
    gather(kind, subject, tower, Path(output), memory_bytes=recipe.memory_bytes, facts=facts)


def image_subject(
    tower: ImageTower, head: Tensor | None, images: ImageSet, recipe: GatherRecipe, seed: int
) -> Subject:
    """An image tower and a choice of images; without a head it has no likelihood."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images.labels), generator=generator)[: recipe.num_examples].numpy()
    draws = torch.Generator()

    def pixels_of(places: np.ndarray) -> Tensor:
        fitted = fit_images(images.images[places], tower.image_size)
        report_progress(fitted.nbytes)
        return normalise_pixels(torch.from_numpy(fitted).permute(0, 3, 1, 2), tower)

    def batches(size: int) -> Iterator[tuple[Tensor, Tensor]]:
        draws.manual_seed(seed)  # every pass draws the same labels
        for start in range(0, len(chosen), size):
            places = chosen[start : start + size]
            yield pixels_of(places), torch.from_numpy(images.labels[places])

    def likelihood(example: tuple[Tensor, Tensor]) -> Tensor:
        assert head is not None, "only Fisher diagonals ask for a likelihood"
        pixels, labels = example
        logits = image_logits(tower.visual, head, pixels)
        return log_likelihood(logits, labels, recipe.labels, draws)

    return Subject(
        tower.visual.eval(),
        "visual.",
        batches=lambda: batches(recipe.batch_size),
        forward=lambda batch: tower.visual(batch[0]),
        examples=lambda: batches(1),
        likelihood=likelihood,
        num_examples=len(chosen),
    )
