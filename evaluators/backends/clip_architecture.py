"""What an image tower is built like, whichever library wrote its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nan_merge.errors import CheckpointError

# Defaults of open_clip (model.py, CLIPVisionCfg) and of transformers (CLIPVisionConfig, and
# CLIPTextConfig): a config names only what differs.
_OPEN_CLIP = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0}
_OPEN_CLIP |= {"patch_size": 16, "image_size": 224}
_HF_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
_HF_VISION |= {"num_attention_heads": 12, "image_size": 224, "patch_size": 32}
_HF_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}
_HF_TEXT |= {"num_attention_heads": 8, "max_position_embeddings": 77, "vocab_size": 49_408}
_HF_ACTIVATION, QUICK_GELU, GELU = "hidden_act", "quick_gelu", "gelu"


def describe_tower(model_config: Mapping[str, Any]) -> str:
    """An image tower's architecture in one line; equal lines, equal architecture.

    Args:
        model_config: open_clip's model config.
    """
    vision = {**_OPEN_CLIP, **model_config["vision_cfg"]}
    activation = "QuickGELU" if model_config.get("quick_gelu") else "GELU"
    words = {
        "patch": vision.pop("patch_size"),
        "pixels": vision.pop("image_size"),
        "layers": vision.pop("layers"),
        "width": vision["width"],
        "heads": _heads(vision),
        "MLP": _mlp_width(vision),
        "embedding": model_config["embed_dim"],
    }
    rest = {key: each for key, each in vision.items() if key not in (*_OPEN_CLIP, "eps")}
    text = ", ".join(f"{key} {value}" for key, value in words.items())
    return f"ViT with {text}, {activation}" + (f", {rest}" if rest else "")


def _heads(vision: Mapping[str, Any]) -> int:
    return int(vision["width"]) // int(vision["head_width"])


def _mlp_width(vision: Mapping[str, Any]) -> int:
    return round(vision["width"] * vision["mlp_ratio"])


def open_clip_config(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """open_clip's model config of a CLIP, or a vision tower, whose config is of transformers.

    Args:
        config: Content of its ``config.json``, model_type ``clip`` or ``clip_vision_model``.
        place: Where it lies, for messages.

    Raises:
        CheckpointError: If open_clip's plain CLIP cannot be built like it.
    """
    is_whole = config.get("model_type") == "clip"
    vision = {**_HF_VISION, **(config.get("vision_config") or {} if is_whole else config)}
    parts = [vision]
    embed_dim = config.get("projection_dim", 512)
    result: dict[str, Any] = {"embed_dim": embed_dim, "vision_cfg": _vision_config(vision)}
    if is_whole:
        text = {**_HF_TEXT, **(config.get("text_config") or {})}
        parts.append(text)
        result["text_cfg"] = {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "layers": text["num_hidden_layers"],
            "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
        }
    activations = {part.get(_HF_ACTIVATION, QUICK_GELU) for part in parts}
    if len(activations) > 1 or not activations <= {QUICK_GELU, GELU}:
        raise CheckpointError(
            f"{place}: {_HF_ACTIVATION} is {', '.join(sorted(activations))}; a CLIP of open_clip "
            f"has {QUICK_GELU} or {GELU} in both towers."
        )
    epsilons = {part.get("layer_norm_eps", 1e-5) for part in parts}
    if epsilons != {1e-5}:
        raise CheckpointError(f"{place}: layer_norm_eps is {epsilons}; open_clip's is 1e-5.")
    if activations == {QUICK_GELU}:
        result["quick_gelu"] = True
    return result


def _vision_config(vision: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "image_size": vision["image_size"],
        "layers": vision["num_hidden_layers"],
        "width": vision["hidden_size"],
        "head_width": vision["hidden_size"] // vision["num_attention_heads"],
        "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
        "patch_size": vision["patch_size"],
    }
