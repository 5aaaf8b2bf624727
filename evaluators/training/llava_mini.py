"""A LLaVA of less than a million weights, trained on questions about drawn pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluators.benchmarks import PROFILES
from evaluators.pictures import decode_picture, read_picture
from evaluators.profiles import Profile
from evaluators.rendering import prompt_text, wording_of
from evaluators.samples import Sample
from evaluators.training.batches import (
    TrainingProgress,
    adamw,
    cosine_decay,
    draw_batches,
    take_step,
    warm_up,
)
from evaluators.training.causal import IGNORED
from evaluators.training.drawn_questions import SIZE, Skill, write_drawn_benchmarks
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
_ASKED = (("mathvista", "mathvista-offline-v1"), ("wemath", "wemath"), ("ai2d", "llava"),
          ("geoqa", "gllava-compat"))  # fmt: skip


@dataclass(frozen=True)
class _Lesson:
    """Questions with answers, as tensors: ids and labels (n, length), pixels (n, 3, size, size)."""

    ids: Tensor
    labels: Tensor
    pixels: Tensor


def make_llava_mini(recipe: DrawnRecipe, *, seed: int, output: Path) -> Iterator[TrainingProgress]:
    """Train a model from random weights.

    Args:
        recipe: How.
        seed: Of weights, pictures and batches.
        output: Checkpoint folder; appears when training has ended.
    """
    with publish_folder(output) as staging:
        torch.manual_seed(seed)
        questions = drawn_samples(recipe, seed)
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
        questions = drawn_samples(recipe, seed)
        yield from _train(model, processor, questions, recipe, seed, name)
        _save(model, processor, staging)


def drawn_samples(recipe: DrawnRecipe, seed: int) -> list[tuple[Profile, Sample, Any]]:
    """Drawn questions as the benchmarks' own profiles ask them, each with its decoded picture."""
    found: list[tuple[Profile, Sample, Any]] = []
    with TemporaryDirectory(prefix="nan-merge-drawn-") as folder:
        write_drawn_benchmarks(Path(folder), recipe.num_samples, seed + 1_000_003)
        for name in _ASKED:
            profile = PROFILES[name]
            for sample in profile.samples(Path(folder) / name[0]):
                if skill_of(sample) in recipe.skills:
                    picture = decode_picture(sample.id, read_picture(sample.images[0]))
                    found.append((profile, sample, picture))
    return found


def skill_of(sample: Sample) -> Skill:
    """What a drawn question asks for."""
    words = sample.question[0]
    text = words if isinstance(words, str) else words.content
    return "colour" if "What colour" in text else "count" if "How many" in text else "place"


def answer_of(profile: Profile, sample: Sample) -> str:
    """The right answer in words that the profile's scorers understand."""
    if profile.benchmark == "wemath":
        return f" <Answer>: <<{sample.gold}>>"
    if profile.benchmark == "geoqa":
        return f" Therefore, the answer is {sample.gold}."
    if profile.benchmark == "mathvista":
        gold = sample.gold
        if sample.options:
            gold = sample.labels[sample.options.index(gold)]
        return f" The answer is {gold}"
    return f" {sample.gold}"


def _texts(questions: Sequence[tuple[Profile, Sample, Any]]) -> list[str]:
    pieces = [
        (str(sample.question[0].content), answer_of(profile, sample))  # type: ignore[union-attr]
        for profile, sample, _ in questions
    ]
    return ["USER: ASSISTANT:", *(text for pair in pieces for text in pair)]


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
    images = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=size)
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


def _lessons(processor: Any, questions: Sequence[tuple[Profile, Sample, Any]]) -> list[_Lesson]:
    """The questions of each benchmark, padded among themselves."""
    by_benchmark: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
    tokenizer = processor.tokenizer
    for profile, sample, picture in questions:
        text = prompt_text(tokenizer, sample, wording_of(profile, True), 0)
        inputs = processor(
            text=[text], images=[picture], add_special_tokens=False, return_tensors="pt"
        )
        asked = inputs["input_ids"][0]
        answer = tokenizer(answer_of(profile, sample), add_special_tokens=False)["input_ids"]
        answer = torch.tensor([*answer, tokenizer.eos_token_id])
        ids = torch.cat([asked, answer])
        labels = torch.cat([torch.full_like(asked, IGNORED), answer])
        found = by_benchmark.setdefault(profile.benchmark, [])
        found.append((ids, labels, inputs["pixel_values"][0]))
    pad = torch.nn.utils.rnn.pad_sequence
    return [
        _Lesson(
            pad([each[0] for each in rows], batch_first=True),
            pad([each[1] for each in rows], batch_first=True, padding_value=IGNORED),
            torch.stack([each[2] for each in rows]),
        )
        for rows in by_benchmark.values()
    ]


def _train(
    model: Any,
    processor: Any,
    questions: Sequence[tuple[Profile, Sample, Any]],
    recipe: DrawnRecipe,
    seed: int,
    name: str,
) -> Iterator[TrainingProgress]:
    """Train every weight; each step is of one benchmark, in turn."""
    lessons = _lessons(processor, questions)
    generator = torch.Generator().manual_seed(seed)
    drawn = [draw_batches(len(each.ids), recipe.batch_size, generator) for each in lessons]
    optimizer = adamw(
        model.parameters(), learning_rate=recipe.learning_rate, weight_decay=0.0, betas=(0.9, 0.95)
    )
    model.train()
    for step in range(recipe.steps):
        lesson, batches = lessons[step % len(lessons)], drawn[step % len(lessons)]
        rows = next(batches)
        ids, labels = lesson.ids[rows], lesson.labels[rows]
        # Padding stands behind every token that counts, where a causal model sees none of it.
        logits = model(input_ids=ids, pixel_values=lesson.pixels[rows]).logits[:, :-1].float()
        loss = functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
        )
        share = warm_up(step, recipe.warmup_steps) * cosine_decay(step, recipe.steps)
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
