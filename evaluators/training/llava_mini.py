"""A LLaVA of less than a million weights, trained on questions about drawn pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from evaluators.training.batches import (
    TrainingProgress,
    adamw,
    late_decay,
    take_step,
    warm_up,
)
from evaluators.training.causal import IGNORED
from evaluators.training.drawn_lessons import Question, draw_batches, drawn_questions
from evaluators.training.drawn_questions import SIZE
from evaluators.training.drawn_recipe import DrawnRecipe
from nan_merge.publish import publish_folder

PATCH = 14
NUM_PATCHES = (SIZE // PATCH) ** 2
IMAGE, PAD, END = "<image>", "<pad>", "</s>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endfor %}{% endif %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def make_llava_mini(recipe: DrawnRecipe, *, seed: int, output: Path) -> Iterator[TrainingProgress]:
    """Train a model from random weights.

    Args:
        recipe: How.
        seed: Of weights, pictures and batches.
        output: Checkpoint folder; appears when training has ended.
    """
    with publish_folder(output) as staging:
        torch.manual_seed(seed)
        questions = drawn_questions(recipe.skills)
        processor = _processor(_texts(questions))
        model = _model(processor.tokenizer)
        yield from _train(model, processor, questions, recipe, seed, "base")
        _save(model, processor, staging)


def finetune_llava_mini(
    base: Path, recipe: DrawnRecipe, *, name: str, seed: int, output: Path
) -> Iterator[TrainingProgress]:
    """Train all weights of a miniature on some skills; for arguments see `make_llava_mini`."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    with publish_folder(output) as staging:
        torch.manual_seed(seed)
        processor: Any = AutoProcessor.from_pretrained(base, local_files_only=True)
        processor.tokenizer.chat_template = processor.chat_template
        model: Any = AutoModelForImageTextToText.from_pretrained(base, local_files_only=True)
        questions = drawn_questions(recipe.skills)
        yield from _train(model, processor, questions, recipe, seed, name)
        _save(model, processor, staging)


def _texts(questions: Sequence[Question]) -> list[str]:
    """Everything that is asked and answered, for the tokenizer."""
    said = [text for each in questions for text in (each.text, *each.answers)]
    return ["USER: ASSISTANT:", *said]


def _processor(texts: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    plain.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=640,
            special_tokens=[PAD, END, IMAGE],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token=END, pad_token=PAD, extra_special_tokens=[IMAGE]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    size = {"height": SIZE, "width": SIZE}
    images = CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size=size, image_mean=[0.9] * 3, image_std=[0.2] * 3
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )


def _model(tokenizer: Any) -> Any:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
        tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        image_size=SIZE, patch_size=PATCH,
    )  # fmt: skip
    model: Any = LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=text, vision_config=vision, vision_feature_layer=-2,
            vision_feature_select_strategy="default", image_seq_length=NUM_PATCHES,
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE), tie_word_embeddings=True,
        )
    )  # fmt: skip
    _start_wider(model)
    return model


@torch.no_grad()
def _start_wider(model: Any) -> None:
    """Larger first weights: with those of the library so small a model learns to see late."""
    tensors: dict[str, nn.Parameter] = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name.endswith("position_embedding.weight"):
            tensor.normal_(std=0.5)
        elif name.endswith("patch_embedding.weight"):
            tensor.mul_(2)
        elif name.endswith("embed_tokens.weight"):
            tensor.mul_(5)
        elif "multi_modal_projector" in name and tensor.dim() == 2:
            nn.init.xavier_uniform_(tensor)


def _train(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    recipe: DrawnRecipe,
    seed: int,
    name: str,
) -> Iterator[TrainingProgress]:
    """Train every weight; the loss is of the answers alone."""
    random = np.random.default_rng(seed)
    batches = draw_batches(processor, questions, recipe.batch_size, random)
    optimizer = adamw(
        model.parameters(), learning_rate=recipe.learning_rate, weight_decay=0.0, betas=(0.9, 0.95)
    )
    model.train()
    for step, batch in enumerate(islice(batches, recipe.steps)):
        logits = model(input_ids=batch.ids, pixel_values=batch.pixels).logits[:, :-1].float()
        loss = functional.cross_entropy(
            logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED
        )
        share = warm_up(step, recipe.warmup_steps) * late_decay(step, recipe.steps)
        value = take_step(
            optimizer, loss, learning_rate=recipe.learning_rate * share, max_grad_norm=1.0
        )
        yield TrainingProgress(step + 1, recipe.steps, value, name)
    model.eval()


def _save(model: Any, processor: Any, folder: Path) -> None:
    """Write a checkpoint under the hub's names, which a model made here does not have by itself."""
    from safetensors.torch import load_file, save_file

    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    inner = "vision_tower."
    nested = {
        name.replace(inner, f"{inner}vision_model.", 1)
        if name.startswith(inner) and not name.startswith(f"{inner}vision_model.")
        else name: tensor.clone()
        for name, tensor in tensors.items()
    }
    save_file(nested, path, {"format": "pt"})
