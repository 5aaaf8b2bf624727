"""AdaMerging: learn coefficients on unlabelled images, by making predictions less uncertain.

arXiv 2310.02575, Equations 3 to 6: the merged tower is theta = base + sum_i lambda_i tau_i, with
lambda_i of each model for all tensors (task-wise), or one for each layer (layer-wise; the authors'
code, github.com/EnnengYang/AdaMerging, has one for each tensor). The sum over tasks of the mean
entropy of softmax predictions, on unlabelled test images and through the frozen zero-shot heads, is
minimised by Adam; coefficients stay in [0, 1]. With task vectors that TIES trimmed and whose
elements against the elected sign it removed, this is AdaMerging++.

Only coefficients are learned and written; the merge itself is the engine's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from evaluators.backends.clip import (
    ImageTower,
    fit_images,
    image_logits,
    normalise_pixels,
    zero_shot_head,
)
from evaluators.backends.clip_checkpoints import load_clip, load_image_tower
from evaluators.image_sets import load_image_set
from evaluators.training.batches import TrainingProgress, draw_batches
from nan_merge.coefficient_table import CoefficientTable, scope_key
from nan_merge.errors import EvaluationError
from nan_merge.publish import write_text_atomically
from nan_merge.schema import StrictModel

PREFIX = "visual."  # of an image tower's tensors in its checkpoint


class AdamergingRecipe(StrictModel):
    """How coefficients are learned."""

    scope: Literal["model", "layer", "tensor"] = "tensor"
    """What has a coefficient of its own for each model: all tensors together (task-wise), each
    layer, or each tensor (what the authors' code calls layer-wise)."""
    steps: int = Field(default=500, gt=0)
    """Steps of Adam."""
    images_per_task: int = Field(default=16, gt=0)
    """Unlabelled images of each task in a step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of Adam; a coefficient moves by about so much in a step."""
    images: Literal["test", "train"] = "test"
    """Which images, never their labels: those of the test sets as in the paper, which are then
    no images that the result has not seen, or those of the training sets."""


@dataclass(frozen=True)
class UnlabelledTask:
    """What is known of a task without labels.

    Attributes:
        name: Whose.
        images: uint8 RGB (n, height, width, 3); may be a memory map, of which batches are read.
        head: float32 (classes, embed_dim).
    """

    name: str
    images: np.ndarray
    head: Tensor


def mean_entropy(logits: Tensor) -> Tensor:
    """Mean over rows of the entropy of their softmax, in nats; (rows, classes) -> scalar."""
    scores = functional.log_softmax(logits, dim=1)
    return -(scores.exp() * scores).sum(dim=1).mean()


class MergedTower:
    """A tower whose parameters are a base plus coefficients times task vectors.

    Attributes:
        keys: Of the coefficient table, in the order of its rows.
    """

    def __init__(
        self,
        visual: nn.Module,
        base: Mapping[str, Tensor],
        columns: Sequence[Mapping[str, Tensor]],
        scope: str,
    ) -> None:
        """Hold the task vectors.

        Args:
            visual: The tower; its parameters are overwritten.
            base: Parameter's name -> the base's value.
            columns: For each of T models, name -> the base's value plus its task vector.
            scope: What has coefficients of its own.
        """
        self._parameters = dict(visual.named_parameters())
        self._base = base
        self._vectors = {
            name: torch.stack([column[name] - base[name] for column in columns])
            for name in self._parameters
        }
        self._key_of = {name: scope_key(scope, PREFIX + name) for name in self._parameters}
        self.keys = list(dict.fromkeys(self._key_of.values()))
        self._rows = {key: row for row, key in enumerate(self.keys)}

    @torch.no_grad()
    def merge(self, coefficients: Tensor) -> None:
        """Set the parameters; coefficients have shape (keys, T)."""
        for name, parameter in self._parameters.items():
            row = coefficients[self._rows[self._key_of[name]]]
            update = torch.tensordot(row, self._vectors[name], dims=1)
            parameter.copy_(self._base[name] + update)

    def gradient(self, losses: Callable[[], Iterator[Tensor]]) -> tuple[Tensor, float]:
        """Gradient of a sum of losses by the coefficients, (keys, T), and the sum itself.

        The gradient by the parameters is taken first, loss by loss, and then its inner products
        with the task vectors: no graph is kept over the merge.
        """
        parameters = list(self._parameters.values())
        sums = [torch.zeros_like(each) for each in parameters]
        total = 0.0
        for loss in losses():
            total += float(loss.detach())
            for mine, own in zip(sums, torch.autograd.grad(loss, parameters), strict=True):
                mine.add_(own)
        first = next(iter(self._vectors.values()))
        found = first.new_zeros(len(self.keys), len(first))
        for name, own in zip(self._parameters, sums, strict=True):
            products = self._vectors[name].flatten(1) @ own.flatten()
            found[self._rows[self._key_of[name]]] += products
        return found, total


def learn(
    merged: MergedTower,
    start: Tensor,
    losses: Callable[[], Iterator[Tensor]],
    recipe: AdamergingRecipe,
) -> Iterator[tuple[float, Tensor]]:
    """Follow the gradient; yields the loss before each step and the coefficients after it.

    Args:
        merged: The tower.
        start: (keys, T).
        losses: The losses of a step, one per task, of the tower as it stands.
        recipe: Steps and learning rate.

    Raises:
        EvaluationError: If the loss is not finite.
    """
    coefficients = nn.Parameter(start.clone().clamp_(0, 1))
    optimizer = torch.optim.Adam([coefficients], lr=recipe.learning_rate, betas=(0.9, 0.999))
    for _ in range(recipe.steps):
        merged.merge(coefficients.detach())
        gradient, loss = merged.gradient(losses)
        if not math.isfinite(loss):
            raise EvaluationError(
                f"AdaMerging diverged: the entropy is {loss}. Lower its learning_rate."
            )
        coefficients.grad = gradient
        optimizer.step()
        with torch.no_grad():
            coefficients.clamp_(0, 1)
        yield loss, coefficients.detach().clone()


def learn_coefficients(
    clip_folder: str,
    base_folder: str,
    columns: Mapping[str, str],
    image_sets: Mapping[str, str],
    start: CoefficientTable,
    recipe: AdamergingRecipe,
    *,
    seed: int,
    output: str,
) -> Iterator[TrainingProgress]:
    """Task body: learn the coefficients of image towers, and write them as a table.

    The same seed gives the same bytes on the same machine with the same number of threads.

    Args:
        clip_folder: The whole pretrained CLIP, whose text tower makes the heads.
        base_folder: The base tower.
        columns: Model's name -> folder of the base plus what the method leaves of that model's
            task vector with coefficient 1: for Task Arithmetic, the model itself.
        image_sets: Task -> ``.npz`` file; labels are not looked at.
        start: Coefficients to start from; a scope finer than the recipe's is averaged.
        recipe: How to learn.
        seed: Of batches.
        output: JSON file to write, which ``coefficients: {source: table}`` reads.

    Raises:
        NanMergeError: If something cannot be read or written, or learning diverges.
    """
    torch.set_num_threads(1)  # one worker per core; and the same sums on any number of cores
    tower = load_image_tower(Path(base_folder))
    base = {name: each.detach().clone() for name, each in tower.visual.named_parameters()}
    tasks = _unlabelled(clip_folder, image_sets)
    models = [
        dict(load_image_tower(Path(folder)).visual.named_parameters())
        for folder in columns.values()
    ]
    merged = MergedTower(tower.visual.eval(), base, models, recipe.scope)
    names = [PREFIX + name for name in tower.visual.state_dict()]
    found = start_rows(start, names, recipe.scope)
    losses = _losses(tower, tasks, recipe, seed)
    beginning = torch.tensor([found[key] for key in merged.keys])
    learned = beginning
    for step, (loss, now) in enumerate(learn(merged, beginning, losses, recipe), start=1):
        learned = now
        yield TrainingProgress(step, recipe.steps, loss, "entropy")
    # Tensors that are no parameters, of which no loss has a gradient, keep what they started with.
    found |= {key: tuple(row) for key, row in zip(merged.keys, learned.tolist(), strict=True)}
    table = CoefficientTable(tuple(columns), recipe.scope, found, found, {}, 1.0)
    write_text_atomically(Path(output), json.dumps(table.as_json(), indent=1) + "\n")


def start_rows(
    start: CoefficientTable, tensor_names: Sequence[str], scope: str
) -> dict[str, tuple[float, ...]]:
    """Key -> T coefficients to start from: means over the tensors under each key."""
    groups: dict[str, list[tuple[float, ...]]] = {}
    for name in tensor_names:
        groups.setdefault(scope_key(scope, name), []).append(start.for_tensor(name))
    return {
        key: tuple(math.fsum(column) / len(rows) for column in zip(*rows, strict=True))
        for key, rows in groups.items()
    }


def _unlabelled(clip_folder: str, image_sets: Mapping[str, str]) -> list[UnlabelledTask]:
    clip = load_clip(Path(clip_folder))
    found: list[UnlabelledTask] = []
    for name, path in image_sets.items():
        images = load_image_set(Path(path))
        head = zero_shot_head(clip, images.class_names, images.templates)
        found.append(UnlabelledTask(name, images.images, head))
    return found


def _losses(
    tower: ImageTower, tasks: Sequence[UnlabelledTask], recipe: AdamergingRecipe, seed: int
) -> Callable[[], Iterator[Tensor]]:
    """Every call takes the next batch of every task."""
    generator = torch.Generator().manual_seed(seed)
    streams = [draw_batches(len(t.images), recipe.images_per_task, generator) for t in tasks]

    def losses() -> Iterator[Tensor]:
        for task, stream in zip(tasks, streams, strict=True):
            fitted = fit_images(task.images[next(stream).numpy()], tower.image_size)
            pixels = normalise_pixels(torch.from_numpy(fitted).permute(0, 3, 1, 2), tower)
            yield mean_entropy(image_logits(tower.visual, task.head, pixels))

    return losses
