"""Names of tensors in vision-language models: every scheme of a family becomes that of the hub.

One model is stored under several schemes: that of its authors' code, that of the Hugging Face hub,
and that of transformers 5 in memory (``save_original_format=False``). Loaders such as vLLM's know
the hub's. The renamings are those of transformers 5.19 (``conversion_mapping.py``) and, for the
original LLaVA, of its conversion script (``models/llava/convert_llava_weights_to_hf.py``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Renamings = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Family:
    """Models whose tensors are named alike.

    Attributes:
        name: For messages.
        renamings: Pattern at the beginning of a name in another scheme -> what stands there in the
            hub's; the first that fits counts.
        text_renamings: The same for the names of a language model of its own.
        modules: Module -> patterns of the hub's names of its tensors; the first that fits counts.
    """

    name: str
    renamings: Renamings
    text_renamings: Renamings
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


_LLAVA = Family(
    name="LLaVA",
    renamings=(
        (r"model\.vision_tower\.vision_tower\.", "vision_tower."),
        (r"model\.(?=vision_tower\.|multi_modal_projector\.|image_newline$)", ""),
        (r"model\.mm_projector\.0\.", "multi_modal_projector.linear_1."),
        (r"model\.mm_projector\.2\.", "multi_modal_projector.linear_2."),
        (r"model\.language_model\.", "language_model.model."),
        (r"model\.(?=layers\.|embed_tokens\.|norm\.)", "language_model.model."),
        (r"lm_head\.", "language_model.lm_head."),
    ),
    text_renamings=(
        (r"model\.", "language_model.model."),
        (r"lm_head\.", "language_model.lm_head."),
    ),
    modules={
        "language_model": ("language_model.*",),
        "projector": ("multi_modal_projector.*", "model.mm_projector.*"),
        "vision_tower": ("vision_tower.*",),
    },
)
_QWEN2_VL = Family(
    name="Qwen2-VL",
    renamings=((r"model\.visual\.", "visual."), (r"model\.language_model\.", "model.")),
    text_renamings=(),
    modules={
        "projector": ("visual.merger.*",),
        "vision_tower": ("visual.*",),
        "language_model": ("model.*", "lm_head.*"),
    },
)
_QWEN3_VL = Family(
    name="Qwen3-VL",
    renamings=((r"visual\.", "model.visual."),),
    text_renamings=((r"model\.", "model.language_model."),),
    modules={
        "projector": ("model.visual.merger.*", "model.visual.deepstack_merger_list.*"),
        "vision_tower": ("model.visual.*",),
        "language_model": ("model.language_model.*", "lm_head.*"),
    },
)
MODULES = ("language_model", "projector", "vision_tower")
_FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        ("llava", "llava_next", "llava_onevision", "vipllava", "gemma3", "internvl", "mistral3",
         "aya_vision", "paligemma"),
        _LLAVA,
    ),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), _QWEN2_VL),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe"), _QWEN3_VL),
}  # fmt: skip
# Towers that the hub keeps under the name of the whole vision model; others have no such name.
_NESTED_TOWERS = ("clip_vision_model", "siglip_vision_model")
_NESTED_TOWER = (r"vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.")
# How a vision model of its own names what a tower is, with its wrapper's name and without.
_LONE_TOWER = (r"(?:vision_model\.)?(embeddings|encoder|pre_layrnorm|post_layernorm)\.",
               r"vision_tower.vision_model.\1.")  # fmt: skip


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A model's config, or another table beside it; empty if there is none that can be read."""
    try:
        config: Any = json.loads((folder / name).read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The family of a vision-language model; None of any other."""
    if is_original_llava(config):
        return _LLAVA
    if not isinstance(config.get("vision_config"), dict):
        return None
    return _FAMILIES.get(str(config.get("model_type")))


def is_original_llava(config: Mapping[str, Any]) -> bool:
    """Whether a config is of the original LLaVA code, which transformers and vLLM cannot read."""
    return "mm_projector_type" in config or "mm_vision_tower" in config


def hub_names(config: Mapping[str, Any], names: Sequence[str]) -> dict[str, str]:
    """Name in a file -> name in the hub's scheme; the same for models of no family.

    Args:
        config: The model's.
        names: Of its tensors.
    """
    family = family_of(config)
    if family is None:
        return {name: name for name in names}
    renamed = {name: rename(name, family.renamings) for name in names}
    tower = config.get("vision_config")
    is_nested = isinstance(tower, dict) and tower.get("model_type") in _NESTED_TOWERS
    if family is _LLAVA and is_nested:
        return {name: rename(new, (_NESTED_TOWER,)) for name, new in renamed.items()}
    return renamed


def tower_names(names: Sequence[str]) -> dict[str, str]:
    """The same for a vision model of its own, such as CLIP, as the tower of a LLaVA."""
    return {name: rename(name, (_LONE_TOWER,)) for name in names}


def rename(name: str, renamings: Renamings) -> str:
    """A name whose beginning is changed by the first renaming that fits it.

    >>> rename("visual.merger.mlp.0.weight", [("visual[.]", "model.visual.")])
    'model.visual.merger.mlp.0.weight'
    """
    for pattern, replacement in renamings:
        new, count = re.subn(rf"\A{pattern}", replacement, name)
        if count:
            return new
    return name
