"""Train the text tower alone, before any image: prompts of one class word meet, others part.

A text tower of random weights maps all prompts to nearly one direction, and zero-shot heads of
collinear rows teach an image tower nothing. Two seconds of contrast between prompts cure that;
the tower is locked afterwards, which also makes image training cheaper.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from evaluators.backends.clip import Clip
from evaluators.image_sets import ImageSet
from evaluators.training.batches import adamw, take_step
from nan_merge.schema import StrictModel


class TextRecipe(StrictModel):
    """How the text tower is trained; every step sees all prompts of all tasks."""

    steps: int = Field(default=80, gt=0)
    """Optimiser steps; each sees every prompt."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Of AdamW; constant."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW: share of a weight lost in a step, per unit of learning rate."""
    similarity_scale: float = Field(default=14.0, gt=0)
    """Inverse temperature of the contrast between prompts, on cosines."""


def train_text_tower(
    clip: Clip, train_sets: Sequence[ImageSet], recipe: TextRecipe
) -> Iterator[float]:
    """Train in place, then lock every parameter of the text tower; yields the loss of each step.

    Draws nothing, so it needs no seed.

    Raises:
        EvaluationError: If the loss is not finite.
    """
    prompts, words = _all_prompts(train_sets)
    tokens = clip.tokenize(prompts)
    same_word = words[:, None] == words[None, :]  # (num_prompts, num_prompts)
    text_parameters = [
        parameter
        for name, parameter in clip.model.named_parameters()
        if not name.startswith("visual.") and name != "logit_scale"
    ]
    optimizer = adamw(
        text_parameters, learning_rate=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    for _ in range(recipe.steps):
        embeddings = clip.model.encode_text(tokens, normalize=True)
        loss = supervised_contrast(embeddings, same_word, recipe.similarity_scale)
        yield take_step(optimizer, loss, learning_rate=recipe.learning_rate)
    for parameter in text_parameters:
        parameter.requires_grad_(False).grad = None


def supervised_contrast(embeddings: Tensor, same_class: Tensor, scale: float) -> Tensor:
    """Supervised contrastive loss (arXiv:2004.11362, L_out of Eq. 2).

    Args:
        embeddings: Unit vectors, float32 (n, embed_dim).
        same_class: bool (n, n); every row needs another True beside its own.
        scale: Inverse temperature.

    Returns:
        The mean over all anchors, a scalar.
    """
    own = torch.eye(len(embeddings), dtype=torch.bool)
    similarity = (scale * embeddings @ embeddings.T).masked_fill(own, float("-inf"))
    log_share = functional.log_softmax(similarity, dim=1).masked_fill(own, 0.0)
    positive = same_class & ~own
    return -((log_share * positive).sum(dim=1) / positive.sum(dim=1)).mean()


def _all_prompts(train_sets: Sequence[ImageSet]) -> tuple[list[str], Tensor]:
    """Every prompt of every task, and for each the index of its class word, int64 (n,).

    Tasks that share a word ("three") share its index.
    """
    index_of: dict[str, int] = {}
    prompts: list[str] = []
    words: list[int] = []
    for image_set in train_sets:
        for class_name in image_set.class_names:
            word = index_of.setdefault(class_name, len(index_of))
            prompts += [template.replace("{}", class_name) for template in image_set.templates]
            words += [word] * len(image_set.templates)
    return prompts, torch.tensor(words)
