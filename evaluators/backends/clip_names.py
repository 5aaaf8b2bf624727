"""Name a CLIP's tensors as open_clip does, whichever library saved them.

transformers keeps queries, keys and values apart and its projections transposed
(transformers/models/clip/modeling_clip.py); task_vectors saves an object that holds open_clip's
CLIP as ``model`` (mlfoundations/task_vectors, src/modeling.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from nan_merge.errors import CheckpointError

VISUAL = "visual."
# Of task_vectors' image encoder, and of its classifier, which holds one.
_OPEN_CLIP_PREFIXES = ("", "model.", "image_encoder.model.")
_HF_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.(.+)$")
_IN_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_IN_VISION = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "pre_layrnorm.weight": "ln_pre.weight",
    "pre_layrnorm.bias": "ln_pre.bias",
    "post_layernorm.weight": "ln_post.weight",
    "post_layernorm.bias": "ln_post.bias",
}
_IN_TEXT = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_PROJECTIONS = {
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}
_QKV = ("q", "k", "v")

Read = Callable[[str], Tensor]


def open_clip_prefix(names: Iterable[str]) -> str | None:
    """What stands before open_clip's own names of an image tower; None if they are not there."""
    names = set(names)
    for prefix in _OPEN_CLIP_PREFIXES:
        if f"{prefix}{VISUAL}conv1.weight" in names:
            return prefix
    return None


def strip_prefix(names: Iterable[str], prefix: str) -> dict[str, str]:
    """open_clip's name -> name in the file, of every tensor that has the prefix."""
    return {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}


def from_transformers(names: Iterable[str], read: Read, place: str) -> dict[str, Tensor]:
    """The tensors of a CLIP of transformers, or of its vision tower, under open_clip's names.

    Args:
        names: Of all its tensors.
        read: Gives a tensor by its name.
        place: Where they lie, for messages.

    Raises:
        CheckpointError: If there are names that no CLIP has.
    """
    names = set(names)
    found: dict[str, Tensor] = {}
    if "embeddings.class_embedding" in names:  # a vision tower alone, as transformers 5 saves it
        parts = {VISUAL: ("", _IN_VISION)}
    else:
        parts = {VISUAL: ("vision_model.", _IN_VISION), "": ("text_model.", _IN_TEXT)}
    for start, (prefix, table) in parts.items():
        inside = strip_prefix([name for name in names if name not in _PROJECTIONS], prefix)
        for name, tensor in _part(inside, read, table, place).items():
            found[start + name] = tensor
        names -= set(inside.values())
    for name, ours in _PROJECTIONS.items():
        if name in names:
            found[ours] = read(name).T.contiguous()
    if "logit_scale" in names:
        found["logit_scale"] = read("logit_scale").reshape(())
    if rest := sorted(names - _PROJECTIONS.keys() - {"logit_scale"}):
        raise CheckpointError(f"{place} has tensors that no CLIP has: {', '.join(rest[:5])}.")
    return found


def _part(
    inside: Mapping[str, str], read: Read, table: Mapping[str, str], place: str
) -> dict[str, Tensor]:
    """One tower: its name within the tower -> name in the file, and the names outside layers."""
    found: dict[str, Tensor] = {}
    for name, stored in inside.items():
        layer = _HF_LAYER.match(name)
        if name.endswith("embeddings.position_ids"):
            continue  # older files hold the numbers 0, 1, 2, ...
        if layer is None:
            if name not in table:
                raise CheckpointError(f"{place} has a tensor that no CLIP has: {stored}.")
            found[table[name]] = read(stored)
            continue
        block, (module, _, kind) = f"transformer.resblocks.{layer[1]}", layer[2].rpartition(".")
        if module in _IN_LAYER:
            found[f"{block}.{_IN_LAYER[module]}.{kind}"] = read(stored)
        elif module == "self_attn.q_proj":
            others = [stored.replace(".q_proj.", f".{each}_proj.") for each in _QKV]
            if missing := [each for each in others if each not in inside.values()]:
                raise CheckpointError(f"{place} has no tensor {missing[0]}.")
            found[f"{block}.attn.in_proj_{kind}"] = torch.cat([read(each) for each in others])
        elif module not in ("self_attn.k_proj", "self_attn.v_proj"):
            raise CheckpointError(f"{place} has a tensor that no CLIP has: {stored}.")
    return found
