"""Which tensors a LLaVA's config asks for, and of which shapes, under the names of the hub.

They are those of the modules that transformers 5.19 makes of the config (``modeling_llava.py``,
``modeling_llava_next.py``, of the language model ``modeling_llama.py``, ``modeling_mistral.py`` and
``modeling_qwen2.py``, of the vision tower ``modeling_clip.py``). A config names only what is not
the default of its class; these defaults are in ``DEFAULTS``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nan_merge.errors import IncompatibleError

Shape = tuple[int, ...]

LLAVA_TYPES = ("llava", "llava_next")
_DECODER = {
    "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}  # fmt: skip
# Part's type -> its sizes, and the settings that no shape shows, where a config does not name them.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {**_DECODER, "intermediate_size": 11008, "attention_bias": False, "mlp_bias": False},
    "mistral": {**_DECODER, "intermediate_size": 14336, "num_key_value_heads": 8},
    "qwen2": {
        **_DECODER, "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
    },
    "clip_vision_model": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "num_channels": 3, "image_size": 224, "patch_size": 32,
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
}  # fmt: skip
_PART_TYPES = {
    "text_config": ("llama", "mistral", "qwen2"),
    "vision_config": ("clip_vision_model",),
}
MAX_LAYERS = 10_000  # of a config that means what it says


def part_settings(config: Mapping[str, Any], part: str) -> dict[str, Any]:
    """What a LLaVA's config says of its language model or tower, defaults filled in.

    Args:
        config: A LLaVA's.
        part: ``text_config`` or ``vision_config``.

    Raises:
        IncompatibleError: If the part is of a type that is not known here.
    """
    own: Any = config.get(part)
    own = own if isinstance(own, dict) else {}
    known = _PART_TYPES[part]
    kind = str(own.get("model_type", known[0]))
    if kind not in known:
        raise IncompatibleError(f"its {part} is of type {kind}; known here are {', '.join(known)}")
    named = {key: value for key, value in own.items() if value is not None}
    # transformers 5 writes it into a table of its own.
    rope = own.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        named["rope_theta"] = rope["rope_theta"]
    settings = {**DEFAULTS[kind], **named, "model_type": kind}
    if part == "text_config":
        heads = _size(settings, "num_attention_heads")
        settings["num_key_value_heads"] = settings["num_key_value_heads"] or heads
        settings["head_dim"] = settings["head_dim"] or _size(settings, "hidden_size") // heads
    return settings


def expected_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Name in the hub's scheme -> shape, of all that a LLaVA's or LLaVA-NeXT's config asks for.

    The output head is among them, also where the config ties it to the embeddings.

    Raises:
        IncompatibleError: If a part is of a type that is not known here, or a size is none.
    """
    text, tower = (part_settings(config, part) for part in _PART_TYPES)
    found = dict(_decoder(text))
    found |= {f"vision_tower.vision_model.{name}": shape for name, shape in _clip(tower)}
    width, layers = _size(text, "hidden_size"), config.get("vision_feature_layer", -2)
    inputs = _size(tower, "hidden_size") * (len(layers) if isinstance(layers, list) else 1)
    has_bias = config.get("multimodal_projector_bias", True)
    found |= _linear("multi_modal_projector.linear_1", width, inputs, has_bias)
    found |= _linear("multi_modal_projector.linear_2", width, width, has_bias)
    return found | ({"image_newline": (width,)} if config.get("model_type") == "llava_next" else {})


def _decoder(text: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    rows, width, inner, heads, shared, size = (
        _size(text, key)
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads",
                    "num_key_value_heads", "head_dim")
    )  # fmt: skip
    out_bias = bool(text.get("attention_bias"))
    in_bias = out_bias or text["model_type"] == "qwen2"
    mlp_bias = bool(text.get("mlp_bias"))
    yield "language_model.model.embed_tokens.weight", (rows, width)
    yield "language_model.model.norm.weight", (width,)
    yield "language_model.lm_head.weight", (rows, width)
    for layer in range(_num_layers(text)):
        prefix = f"language_model.model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (width,)
        yield f"{prefix}.post_attention_layernorm.weight", (width,)
        for name, outputs, inputs, has_bias in (
            ("self_attn.q_proj", heads * size, width, in_bias),
            ("self_attn.k_proj", shared * size, width, in_bias),
            ("self_attn.v_proj", shared * size, width, in_bias),
            ("self_attn.o_proj", width, heads * size, out_bias),
            ("mlp.gate_proj", inner, width, mlp_bias),
            ("mlp.up_proj", inner, width, mlp_bias),
            ("mlp.down_proj", width, inner, mlp_bias),
        ):
            yield from _linear(f"{prefix}.{name}", outputs, inputs, has_bias).items()


def _clip(tower: Mapping[str, Any]) -> Iterator[tuple[str, Shape]]:
    width, inner, channels, image, patch = (
        _size(tower, key)
        for key in ("hidden_size", "intermediate_size", "num_channels", "image_size", "patch_size")
    )
    yield "embeddings.class_embedding", (width,)
    yield "embeddings.patch_embedding.weight", (width, channels, patch, patch)
    yield "embeddings.position_embedding.weight", ((image // patch) ** 2 + 1, width)
    norms = ["pre_layrnorm", "post_layernorm"]
    for layer in range(_num_layers(tower)):
        prefix = f"encoder.layers.{layer}"
        norms += [f"{prefix}.layer_norm1", f"{prefix}.layer_norm2"]
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{prefix}.self_attn.{name}", width, width, True).items()
        yield from _linear(f"{prefix}.mlp.fc1", inner, width, True).items()
        yield from _linear(f"{prefix}.mlp.fc2", width, inner, True).items()
    for name in norms:
        yield f"{name}.weight", (width,)
        yield f"{name}.bias", (width,)


def _linear(name: str, outputs: int, inputs: int, has_bias: bool) -> dict[str, Shape]:
    bias = {f"{name}.bias": (outputs,)} if has_bias else {}
    return {f"{name}.weight": (outputs, inputs), **bias}


def _num_layers(settings: Mapping[str, Any]) -> int:
    number = _size(settings, "num_hidden_layers")
    if number > MAX_LAYERS:
        raise IncompatibleError(f"its num_hidden_layers is {number:,}")
    return number


def _size(settings: Mapping[str, Any], key: str) -> int:
    value = settings[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise IncompatibleError(f"its {key} is {value!r}, expected a number above 0")
    return value
