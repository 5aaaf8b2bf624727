"""What the trainings share: batches, augmentation, one optimiser step, progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from evaluators.image_sets import ImageSet
from nan_merge.errors import EvaluationError


@dataclass(frozen=True)
class TrainingProgress:
    """One finished step, counted from 1 over all stages; ``loss`` is of its own stage."""

    step: int
    num_steps: int
    loss: float
    stage: str


def draw_batches(num_images: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield int64 (batch_size,) indices for ever; every pass over the images is shuffled anew.

    A set smaller than a batch is passed over more than once a batch.
    """
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while len(waiting) < batch_size:
            waiting = torch.cat([waiting, torch.randperm(num_images, generator=generator)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def pad_images(image_set: ImageSet, margin: int) -> Tensor:
    """Put channels first and repeat the edges: uint8 (n, 3, height + 2m, width + 2m).

    Done once a run, so that ``shift_images`` is only indexing.
    """
    return _padded(image_set.images, margin)


def padded_rows(image_set: ImageSet, margin: int) -> Callable[[Tensor], Tensor]:
    """A function that gives the images of these rows as `pad_images` does.

    A set that is mapped into memory may be larger than it, so each batch is padded by itself.
    """
    if isinstance(image_set.images, np.memmap):
        return lambda rows: _padded(image_set.images[rows.numpy()], margin)
    padded = pad_images(image_set, margin)
    return lambda rows: padded[rows]


def _padded(images: np.ndarray, margin: int) -> Tensor:
    # numpy repeats edges twenty times faster than torch, which knows how for floats only.
    padded = np.pad(images, ((0, 0), (margin,) * 2, (margin,) * 2, (0, 0)), mode="edge")
    return torch.from_numpy(padded).permute(0, 3, 1, 2).contiguous()


def draw_corners(num_images: int, margin: int, generator: torch.Generator) -> Tensor:
    """Where each image is cut out: int64 (2, n, 1), rows and columns from 0 to 2m."""
    return torch.randint(2 * margin + 1, (2, num_images, 1), generator=generator)


def shift_images(padded: Tensor, margin: int, generator: torch.Generator) -> Tensor:
    """Cut each image out at its own random place: uint8 (n, 3, height, width)."""
    return cut_images(padded, margin, draw_corners(len(padded), margin, generator))


def cut_images(padded: Tensor, margin: int, corners: Tensor) -> Tensor:
    """Cut each image out at its corner, as `draw_corners` gives them: uint8 (n, 3, h, w)."""
    num_images, _, height, width = padded.shape
    height, width = height - 2 * margin, width - 2 * margin
    rows = (corners[0] + torch.arange(height))[:, None, :, None]  # (n, 1, height, 1)
    columns = (corners[1] + torch.arange(width))[:, None, None, :]  # (n, 1, 1, width)
    which = torch.arange(num_images)[:, None, None, None]
    return padded[which, torch.arange(3)[None, :, None, None], rows, columns]


def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.98),
) -> torch.optim.AdamW:
    """AdamW in one kernel for all tensors: five times faster at this size."""
    return torch.optim.AdamW(
        parameters, lr=learning_rate, weight_decay=weight_decay, betas=betas, fused=True
    )


def take_step(
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    *,
    learning_rate: float,
    max_grad_norm: float = math.inf,
) -> float:
    """Follow the gradient of ``loss`` once, clipped to ``max_grad_norm``; returns the loss.

    Raises:
        EvaluationError: If the loss is not finite.
    """
    value = loss.item()
    if not math.isfinite(value):
        raise EvaluationError(f"Training diverged: the loss is {value}. Lower learning_rate.")
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        if max_grad_norm < math.inf:
            nn.utils.clip_grad_norm_(group["params"], max_grad_norm)
    optimizer.step()
    return value


def warm_up(step: int, warmup_steps: int) -> float:
    """Share of the learning rate at ``step``, counted from 0: rises linearly to 1."""
    return min(1.0, (step + 1) / max(1, warmup_steps))


def cosine_decay(step: int, num_steps: int) -> float:
    """Share of the learning rate at ``step``, counted from 0: falls from 1 towards 0."""
    return 0.5 * (1 + math.cos(math.pi * step / num_steps))


def late_decay(step: int, num_steps: int, share: float = 0.3) -> float:
    """Share of the learning rate at ``step``, counted from 0: falls to 0 in the last ``share``."""
    return min(1.0, (num_steps - step) / (share * num_steps))
