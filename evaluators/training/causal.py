"""Fine-tune a causal language model on exercises: all weights, loss on the answers alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from evaluators.rendering import Wording, encode
from evaluators.training.batches import TrainingProgress, draw_batches
from evaluators.training.exercises import Exercise, ExerciseKind, make_exercises
from evaluators.training.tuning import Saving, publish_trained, training_key, tune
from nan_merge.checkpoint import open_checkpoint
from nan_merge.errors import EvaluationError, MissingExtraError
from nan_merge.fingerprint import fingerprint
from nan_merge.schema import StrictModel

IGNORED = -100
"""Label of tokens that do not count in the loss."""


class CausalRecipe(StrictModel):
    """How a language model is fine-tuned."""

    exercises: ExerciseKind
    """What it learns."""
    num_exercises: int = Field(default=2000, gt=0)
    """How many different ones there are."""
    steps: int = Field(default=72, gt=0)
    """Optimiser steps."""
    batch_size: int = Field(default=8, gt=0)
    """Exercises in a step."""
    learning_rate: float = Field(default=5e-5, gt=0)
    """Of AdamW at its peak; it rises linearly, then decays as a cosine to 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW: share of a weight lost in a step, per unit of learning rate."""
    warmup_steps: int = Field(default=5, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are shortened to this Euclidean norm."""
    max_tokens: int = Field(default=256, gt=1)
    """Longer exercises are cut off at their end."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the arithmetic; weights are float32 while they are trained. Processors without
    instructions for bfloat16 are many times slower with it."""
    added_tokens: tuple[str, ...] = ()
    """Tokens that the fine-tuned model has and the base lacks, such as a `[PAD]`."""


def finetune_language_model(
    base: Path,
    recipe: CausalRecipe,
    *,
    name: str,
    seed: int,
    output: Path,
    save_seconds: float | None = None,
) -> Iterator[TrainingProgress]:
    """Train every weight of a model in float32, and save it in the base's own dtype.

    The same seed gives the same bytes on the same machine with the same number of threads, also
    if the training was killed in between.

    Args:
        base: Checkpoint folder with its tokenizer.
        recipe: How to train.
        name: What is trained, for people.
        seed: Of exercises, batches and the rows of added tokens.
        output: Checkpoint folder; appears when training has ended.
        save_seconds: As of `finetune_image_tower`.

    Raises:
        OutputError: If ``output`` exists or cannot be written.
        EvaluationError: If training diverges.
        MissingExtraError: If transformers is not installed.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError(
            "Language models need transformers: pip install 'nan-merge[language]'"
        ) from error
    with publish_trained(output, save_seconds) as (staging, saving):
        torch.manual_seed(seed)
        tokenizer: Any = AutoTokenizer.from_pretrained(base, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(base, local_files_only=True, dtype="auto")
        kept_dtype = model.dtype
        model.float()
        if recipe.added_tokens:
            tokenizer.add_tokens(list(recipe.added_tokens), special_tokens=True)
            model.resize_token_embeddings(len(tokenizer))
        exercises = make_exercises(recipe.exercises, recipe.num_exercises, seed)
        rows = [encode_exercise(tokenizer, each, recipe.max_tokens) for each in exercises]
        key = training_key(
            base=fingerprint(open_checkpoint(str(base))),
            recipe=recipe.model_dump(mode="json"),
            seed=seed,
        )
        for step, loss in _train(model, rows, recipe, seed, saving, key):
            yield TrainingProgress(step, recipe.steps, loss, name)
        model.to(kept_dtype).save_pretrained(staging)
        tokenizer.save_pretrained(staging)


def encode_exercise(tokenizer: Any, exercise: Exercise, max_tokens: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels of an exercise, both int64 (length,); the prompt's labels are ignored.

    The answer ends with the end of sequence, so that the model learns to stop.

    Raises:
        EvaluationError: If the tokenizer has no end of sequence.
    """
    if tokenizer.eos_token_id is None:
        raise EvaluationError("The base's tokenizer has no end of sequence to learn to stop with.")
    # As the benchmarks' profiles ask: a tokenizer may put an end of sequence behind every text.
    (prompt,) = encode(tokenizer, [exercise.prompt], Wording(uses_chat_template=False))
    answer: list[int] = tokenizer(exercise.answer, add_special_tokens=False)["input_ids"]
    answer = [*answer, tokenizer.eos_token_id]
    ids = torch.tensor([*prompt, *answer][:max_tokens])
    labels = torch.tensor([*[IGNORED] * len(prompt), *answer][:max_tokens])
    return ids, labels


def _train(
    model: Any,
    rows: Sequence[tuple[Tensor, Tensor]],
    recipe: CausalRecipe,
    seed: int,
    saving: Saving | None,
    key: str,
) -> Iterator[tuple[int, float]]:
    def loss_of(drawn: Tensor) -> Tensor:
        ids, labels = _pad([rows[place] for place in drawn.tolist()])
        with torch.autocast(
            model.device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16"
        ):
            # Padding stands behind every token that counts, where a causal model sees none of it.
            logits = model(input_ids=ids).logits[:, :-1].float()
        return functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
        )

    generator = torch.Generator().manual_seed(seed)
    draws = draw_batches(len(rows), recipe.batch_size, generator)
    yield from tune(model, recipe, draws, loss_of, beta2=0.95, saving=saving, key=key)


def _pad(rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Token ids and labels of a batch, both (batch, longest)."""
    ids = torch.nn.utils.rnn.pad_sequence([each for each, _ in rows], batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(
        [each for _, each in rows], batch_first=True, padding_value=IGNORED
    )
    return ids, labels
