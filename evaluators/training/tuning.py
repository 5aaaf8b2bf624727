"""Fine-tune a module by AdamW, with a warm-up and a cosine; a training that was killed goes on.

What a step draws (images, shifts) follows from the seed and the number of the step. So a training
that goes on draws again what it drew before, and has to keep weights and AdamW's moments alone; it
ends in the same bytes as one that nobody disturbed.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from evaluators.backends.clip_checkpoints import save_tensors
from evaluators.training.batches import adamw, cosine_decay, take_step, warm_up
from nan_merge.fingerprint import digest_text
from nan_merge.publish import partial_paths, publish_folder, staging_path

STATE_FOLDER, STATE_NAME = "training", "state.safetensors"
WEIGHTS = "weights"
Drawn = TypeVar("Drawn")


class TuningRecipe(Protocol):
    """What recipes of fine-tuning share."""

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        ...

    @property
    def learning_rate(self) -> float:
        """Of AdamW at its peak."""
        ...

    @property
    def weight_decay(self) -> float:
        """Of AdamW."""
        ...

    @property
    def warmup_steps(self) -> int:
        """Steps over which the learning rate rises."""
        ...

    @property
    def max_grad_norm(self) -> float:
        """Longer gradients are shortened to this Euclidean norm."""
        ...


@dataclass(frozen=True)
class Saving:
    """Where a training's state is kept.

    Attributes:
        path: Its safetensors file.
        seconds: How much time passes before it is written anew.
    """

    path: Path
    seconds: float


def state_path(output: Path) -> Path:
    """Where the state of a training towards the folder ``output`` is kept until it ends."""
    return staging_path(output) / STATE_FOLDER / STATE_NAME


@contextmanager
def publish_trained(
    output: Path, save_seconds: float | None
) -> Generator[tuple[Path, Saving | None]]:
    """Yield a folder to fill, which appears as ``output`` in the end, and how to keep the state.

    Args:
        output: Folder of the trained model.
        save_seconds: Keep the state so often, also of a training that ends early; None keeps none.

    Raises:
        OutputError: If ``output`` exists, another process writes it, or it cannot be written.
    """
    with publish_folder(output, keep_partial=save_seconds is not None) as staging:
        kept = staging / STATE_FOLDER
        for path in staging.iterdir():  # of an attempt that was killed while it wrote the model
            if path.is_dir() and path != kept:
                shutil.rmtree(path)
            elif path != kept:
                path.unlink()
        for path in partial_paths(kept / STATE_NAME):
            path.unlink()
        yield staging, None if save_seconds is None else Saving(kept / STATE_NAME, save_seconds)
        shutil.rmtree(kept, ignore_errors=True)


def training_key(**shaped_by: Any) -> str:
    """A digest of what shapes a training; a state of another key is not gone on from."""
    content = {"torch": version("torch"), **shaped_by}
    return digest_text(json.dumps(content, sort_keys=True))


def tune(
    module: nn.Module,
    recipe: TuningRecipe,
    draws: Iterator[Drawn],
    loss_of: Callable[[Drawn], Tensor],
    *,
    beta2: float,
    saving: Saving | None = None,
    key: str = "",
) -> Iterator[tuple[int, float]]:
    """Train all parameters of a module, or go on with it.

    Args:
        module: Its parameters are float32.
        recipe: How to train.
        draws: What each step draws, in their order; it depends on the step alone.
        loss_of: The loss of what was drawn, a scalar.
        beta2: Of AdamW: how slowly its second moments forget.
        saving: Where to keep the state, and go on from it.
        key: Of all that shapes the training; see `training_key`.

    Yields:
        Numbers of finished steps, counted from 1, and their losses; first the one gone on from.

    Raises:
        EvaluationError: If the loss is not finite.
        OutputError: If the disk is full or not writable.
    """
    rate, betas = recipe.learning_rate, (0.9, beta2)
    optimizer = adamw(
        module.parameters(), learning_rate=rate, weight_decay=recipe.weight_decay, betas=betas
    )
    done, loss = _restore(module, optimizer, saving, key)
    saved = time.monotonic()
    if done:
        yield done, loss
    module.train()
    for step in range(recipe.steps):
        drawn = next(draws)
        if step < done:
            continue
        share = warm_up(step, recipe.warmup_steps) * cosine_decay(step, recipe.steps)
        loss = take_step(
            optimizer,
            _seeded(loss_of, drawn, int(key[:8] or "0", 16) + step),
            learning_rate=rate * share,
            max_grad_norm=recipe.max_grad_norm,
        )
        if saving is not None and time.monotonic() - saved >= saving.seconds:
            facts = {"of": key, "step": str(step + 1), "loss": repr(loss)}
            save_tensors(_state(module, optimizer), saving.path, facts)
            saved = time.monotonic()
        yield step + 1, loss
    module.eval()


def _seeded(loss_of: Callable[[Drawn], Tensor], drawn: Drawn, seed: int) -> Tensor:
    """The loss with dropout, if the module has any, that the step decides and not the past."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return loss_of(drawn)


def _state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything that later steps depend on, besides what they draw."""
    state = {f"{WEIGHTS}/{name}": each.contiguous() for name, each in _weights(module).items()}
    for name, parameter in module.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            state[f"{kind}/{name}"] = value.contiguous()
    return state


def _weights(module: nn.Module) -> dict[str, Tensor]:
    # Not the state dict, in which a weight that two layers share stands twice.
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: each.detach() for name, each in named.items()}


def _restore(
    module: nn.Module, optimizer: torch.optim.Optimizer, saving: Saving | None, key: str
) -> tuple[int, float]:
    """Put a kept state in place: the step that it is behind, and that step's loss."""
    facts, tensors = _read_state(saving.path) if saving is not None else ({}, {})
    if facts.get("of") != key:
        return 0, math.nan
    for name, weight in _weights(module).items():
        weight.copy_(tensors.pop(f"{WEIGHTS}/{name}"))
    parameters = dict(module.named_parameters())
    for stored, value in tensors.items():
        kind, _, name = stored.partition("/")
        parameter = parameters[name]
        optimizer.state[parameter][kind] = value.to(parameter.device)
    return int(facts["step"]), float(facts["loss"])


def _read_state(path: Path) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return {}, {}  # missing or damaged: a lost file costs only time
