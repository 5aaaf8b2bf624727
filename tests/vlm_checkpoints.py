"""Vision-language models for tests: random miniatures of real architectures, in every naming."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.language_checkpoints import make_tiny_tokenizer

EMBEDDINGS = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
# Of the config of the hub's that `make_originals` writes: a round number above the tokens.
PADDED_ROWS = 384
IMAGE_SIZE, PATCH_SIZE = 56, 14
NUM_PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endfor %}{% endif %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_TOKENS = (
    "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
QWEN_VISION_SIZES = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_heads": 2,
    "out_hidden_size": 64,
    "patch_size": PATCH_SIZE,
}
TEXT_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
}
TOWER_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
}


def vision_tokenizer(*tokens: str) -> Any:
    """The tiny tokenizer with tokens of its own for images."""
    tokenizer = make_tiny_tokenizer()
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    return tokenizer


def make_tiny_llava(
    folder: Path, *, seed: int = 0, next_version: bool = False, tied: bool = False
) -> Path:
    """A LLaVA-1.5, or a LLaVA-NeXT, of random weights, under the names of the hub."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
        LlavaProcessor,
    )

    tokenizer = vision_tokenizer("<image>")
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **TEXT_SIZES,
    )
    shared: dict[str, Any] = {
        "text_config": text,
        "vision_config": CLIPVisionConfig(**TOWER_SIZES),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "image_seq_length": NUM_PATCHES,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": tied,
    }
    torch.manual_seed(seed)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    options: dict[str, Any] = {
        "tokenizer": tokenizer,
        "patch_size": PATCH_SIZE,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "image_token": "<image>",
        "chat_template": CHAT_TEMPLATE,
    }
    if next_version:
        grid = [[IMAGE_SIZE, 2 * IMAGE_SIZE], [2 * IMAGE_SIZE, IMAGE_SIZE]]
        model: Any = LlavaNextForConditionalGeneration(
            LlavaNextConfig(image_grid_pinpoints=grid, **shared)
        )
        images: Any = LlavaNextImageProcessor(
            size={"shortest_edge": IMAGE_SIZE}, crop_size=size, image_grid_pinpoints=grid
        )
        processor: Any = LlavaNextProcessor(image_processor=images, **options)
    else:
        model = LlavaForConditionalGeneration(LlavaConfig(**shared))
        images = CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
        processor = LlavaProcessor(image_processor=images, **options)
    _save(folder, model, processor, _nested_tower)
    return folder


def make_tiny_qwen(folder: Path, *, seed: int = 0) -> Path:
    """A Qwen2.5-VL of random weights, under the names of the hub."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLImageProcessor,
    )

    tokenizer = vision_tokenizer(*QWEN_TOKENS)
    ids = dict(zip(QWEN_TOKENS, tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS)), strict=True))
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "rope_parameters": {
            "rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0,
        },
        "layer_types": ["full_attention"] * 2,
        **TEXT_SIZES,
    }  # fmt: skip
    vision = {
        **QWEN_VISION_SIZES,
        "window_size": 4 * PATCH_SIZE,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        tie_word_embeddings=False,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    images = Qwen2VLImageProcessor(
        patch_size=PATCH_SIZE, min_pixels=(2 * PATCH_SIZE) ** 2, max_pixels=(8 * PATCH_SIZE) ** 2
    )
    processor = _qwen_processor(images, tokenizer)
    _save(folder, model, processor, lambda name: name)
    return folder


def _qwen_processor(images: Any, tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen2VLVideoProcessor

    videos = Qwen2VLVideoProcessor(patch_size=PATCH_SIZE)
    return Qwen2_5_VLProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        video_processor=videos,
        chat_template=QWEN_TEMPLATE,
    )


def _save(folder: Path, model: Any, processor: Any, rename: Callable[[str], str]) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    rename_tensors(folder, rename)


def _nested_tower(name: str) -> str:
    """What transformers 5 saves of a model that it did not load, as the hub has it."""
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return name


def rename_tensors(folder: Path, rename: Callable[[str], str]) -> None:
    """Give the tensors of a checkpoint other names."""
    tensors = load_tensors(folder)
    write_tensors(folder, {rename(name): tensor for name, tensor in tensors.items()})


def load_tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def write_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    clean = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(clean, folder / "model.safetensors", {"format": "pt"})


def finetuned(base: Path, folder: Path, seed: int, size: float = 0.02) -> Path:
    """A copy of a model with a little noise on every tensor."""
    import shutil

    shutil.copytree(base, folder)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor + size * torch.randn(tensor.shape, generator=generator)
        for name, tensor in load_tensors(base).items()
    }
    write_tensors(folder, tensors)
    return folder


def original_name(name: str) -> str:
    """A name of the hub's LLaVA in the original code."""
    for hub, original in (
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
        ("multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("vision_tower.vision_model.", "model.vision_tower.vision_tower.vision_model."),
        ("image_newline", "model.image_newline"),
    ):
        if name.startswith(hub):
            return original + name.removeprefix(hub)
    raise AssertionError(name)


def memory_name(name: str) -> str:
    """A name of the hub's LLaVA in transformers 5, saved without the original format."""
    for hub, memory in (
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("vision_tower.vision_model.", "model.vision_tower."),
        ("image_newline", "model.image_newline"),
    ):
        if name.startswith(hub):
            return memory + name.removeprefix(hub)
    raise AssertionError(name)


def as_original(folder: Path, tower: bool = True, image_token: bool = True) -> Path:
    """Turn a LLaVA of the hub into one of the original code.

    With its vision tower or without, and with or without the hub's token for an image, which is the
    last row of its embeddings.
    """
    config = json.loads((folder / "config.json").read_text())
    own = {
        **config["text_config"],
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
    }
    if "image_grid_pinpoints" in config:
        grid = [pair[::-1] for pair in config["image_grid_pinpoints"]]  # (width, height)
        own |= {"image_aspect_ratio": "anyres", "image_grid_pinpoints": grid,
                "mm_patch_merge_type": "spatial_unpad"}  # fmt: skip
    tensors = load_tensors(folder)
    kept = {n: t for n, t in tensors.items() if tower or not n.startswith("vision_tower.")}
    if not image_token:
        own["vocab_size"] -= 1
        cut = {n: t[:-1] for n, t in kept.items() if t.shape[0] == own["vocab_size"] + 1}
        assert set(cut) == {EMBEDDINGS, HEAD}
        kept |= cut
        vision_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(own))
    write_tensors(folder, {original_name(name): tensor for name, tensor in kept.items()})
    for name in ("processor_config.json", "preprocessor_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    return folder


def make_originals(folder: Path, *, next_version: bool = False) -> dict[str, Any]:
    """`base`, `a` and `b` of the original code, `NAME-hub` the same in the hub's layout.

    Their vision tower is in `clip` (the base of LLaVA-1.6 has one of its own, too), a config of the
    hub without weights in `config`.

    Returns:
        A recipe that merges them, but for its method.
    """
    import shutil

    from transformers import CLIPVisionConfig, CLIPVisionModel

    hub = make_tiny_llava(folder / "hub", next_version=next_version)
    for seed, name in enumerate(("base", "a", "b")):
        finetuned(hub, folder / name, seed)
        shutil.copytree(folder / name, folder / f"{name}-hub")
        as_original(folder / name, tower=next_version and name == "base", image_token=False)
    shutil.copytree(hub, folder / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    path = folder / "config" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"]["vocab_size"] = PADDED_ROWS
    path.write_text(json.dumps(config))
    torch.manual_seed(5)
    CLIPVisionModel(CLIPVisionConfig(**TOWER_SIZES)).save_pretrained(folder / "clip")
    return {
        "base": str(folder / "base"),
        "models": [str(folder / "a"), str(folder / "b")],
        "config": {"path": str(folder / "config")},
        "modules": {"vision_tower": {"path": str(folder / "clip")}},
    }


def make_tiny_gemma(folder: Path, *, seed: int = 0) -> Path:
    """A Gemma 3 of random weights, under the names of the hub; without a processor."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, SiglipVisionConfig

    tokenizer = vision_tokenizer("<start_of_image>", "<image_soft_token>", "<end_of_image>")
    ids = tokenizer.convert_tokens_to_ids
    text = {"vocab_size": len(tokenizer), "head_dim": 32, "sliding_window": 64, **TEXT_SIZES}
    config = Gemma3Config(
        text_config=text,
        vision_config=SiglipVisionConfig(**TOWER_SIZES),
        mm_tokens_per_image=4,
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
    )
    torch.manual_seed(seed)
    _save(folder, Gemma3ForConditionalGeneration(config), tokenizer, _nested_tower)
    return folder


def make_tiny_qwen3(folder: Path, *, seed: int = 0) -> Path:
    """A Qwen3-VL of random weights, under the names of the hub; without a processor."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokenizer = vision_tokenizer(*QWEN_TOKENS)
    ids = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    text = {"vocab_size": len(tokenizer), "head_dim": 32, "rope_parameters": rope, **TEXT_SIZES}
    vision = {
        **QWEN_VISION_SIZES,
        "num_position_embeddings": NUM_PATCHES,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    torch.manual_seed(seed)
    _save(folder, Qwen3VLForConditionalGeneration(config), tokenizer, lambda name: name)
    return folder


def make_tiny_internvl(folder: Path, *, seed: int = 0) -> Path:
    """An InternVL of random weights, under the names of the hub; without a processor."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    tokenizer = vision_tokenizer("<IMG_CONTEXT>")
    config = InternVLConfig(
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **TEXT_SIZES},
        vision_config=TOWER_SIZES,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    _save(folder, InternVLForConditionalGeneration(config), tokenizer, lambda name: name)
    return folder


def make_both_originals(folder: Path) -> Path:
    """Models of the original LLaVA-1.5 and 1.6, each with what `make_originals` writes."""
    for version in ("1.5", "1.6"):
        make_originals(folder / version, next_version=version == "1.6")
    return folder
