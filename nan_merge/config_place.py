"""Config, processor and tokenizer of a result that none of its models has: `config: {path: ...}`.

Checkpoints of the original LLaVA code carry a config that only this code reads, no processor and no
token for an image. All three come from a folder in the hub's layout then, whose weights are not
read. Whether the merged tensors are what its config describes is seen from names and shapes, and
from settings that no shape shows, such as the number of attention heads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nan_merge.checkpoint import Checkpoint
from nan_merge.errors import CheckpointError, IncompatibleError, one_of_each_kind
from nan_merge.hub import resolve_folder
from nan_merge.json_file import read_json_table
from nan_merge.llava_sizes import LLAVA_TYPES, expected_shapes, part_settings
from nan_merge.lora import config_folder
from nan_merge.missing import HEAD_NAMES
from nan_merge.naming import is_original_llava, read_config
from nan_merge.tokenizer_files import has_tokenizer, read_tokens

if TYPE_CHECKING:
    from nan_merge.layout import AlignedTensor

EXAMPLE = "llava-hf/llava-1.5-13b-hf"
MAX_LISTED = 5
# Settings that no tensor's shape shows, in the original config and in a `text_config`.
_HIDDEN = ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_theta", "hidden_act")
_FEATURES = {"patch": "default", "cls_patch": "full"}  # original's name -> that of transformers
# A LLaVA-NeXT's, where its config names none.
_GRID = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]


def open_config_place(path: str) -> Checkpoint:
    """A folder that gives a result its config, processor and tokenizer.

    Args:
        path: Folder or hub id, of which no weights are fetched.

    Returns:
        A checkpoint without tensors.

    Raises:
        CheckpointError: If it is not there, or transformers could not load a LLaVA from these
            files; lists all that is wrong with them.
    """
    try:
        folder = resolve_folder(path, weights=False)
    except CheckpointError as error:
        raise CheckpointError(f"`config`: {error}") from error
    if not folder.is_dir():
        raise CheckpointError(f"`config`: {path} is no folder.")
    config = read_json_table(folder / "config.json", "Name a folder in the hub's layout.")
    if problems := list(_unusable(folder, config)):
        raise CheckpointError(
            f"`config`: {path} ({folder}) cannot give a LLaVA its config: {'; '.join(problems)}. "
            f"Name a LLaVA or LLaVA-NeXT in the hub's layout, such as {EXAMPLE}."
        )
    return Checkpoint(path, folder, (), {})


def num_rows(place: Checkpoint) -> int:
    """Rows of embeddings that its config asks for."""
    return int(part_settings(read_config(place.folder), "text_config")["vocab_size"])


def _unusable(folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    kind = config.get("model_type")
    if is_original_llava(config):
        yield "it is itself in the format of the original LLaVA code"
        return
    if kind not in LLAVA_TYPES or not isinstance(config.get("vision_config"), dict):
        yield f"it is of model_type {kind}, and not {' or '.join(LLAVA_TYPES)}"
        return
    try:
        rows = expected_shapes(config)["language_model.model.embed_tokens.weight"][0]
    except IncompatibleError as error:
        yield str(error)
        return
    processor = read_config(folder, "processor_config.json")
    if "image_processor" not in processor and not (folder / "preprocessor_config.json").is_file():
        yield "it has no image processor (preprocessor_config.json or processor_config.json)"
    elif not isinstance(processor.get("patch_size"), int):
        yield (
            "its processor_config.json names no patch_size, without which transformers 5 does not "
            "know how many tokens an image takes"
        )
    if not has_tokenizer(folder):
        yield "it has no tokenizer (tokenizer.json or tokenizer.model)"
        return
    token = str(processor.get("image_token") or "<image>")
    wanted = config.get("image_token_index", config.get("image_token_id", 32000))
    row = read_tokens(folder).get(token)
    if row is None:
        yield f"its tokenizer has no {token}"
    elif row != wanted:
        yield f"its config says image_token_index {wanted}, its tokenizer has {token} at {row}"
    elif row >= rows:
        yield f"its config has {rows:,} rows of embeddings (vocab_size), {token} is row {row:,}"


def check_place(
    place: Checkpoint,
    inputs: Sequence[Checkpoint],
    towers: Sequence[Checkpoint],
    tensors: Collection[AlignedTensor],
) -> None:
    """Refuse a config that does not describe the result.

    Args:
        place: What `open_config_place` gave.
        inputs: Base and models.
        towers: Checkpoints that parts are taken from and that are not merged.
        tensors: What the result holds.

    Raises:
        IncompatibleError: With every tensor that lacks, is too many or has another shape, and
            every setting that differs from what the models' own configs say.
    """
    config = read_config(place.folder)
    problems = _by_kind(list(_misfits(config, inputs, {each.name: each for each in tensors})))
    for each, compare in (
        *((each, _other_settings) for each in inputs),
        *((each, _other_tower) for each in towers),
    ):
        try:
            problems += compare(config, each)
        except IncompatibleError as error:  # of what its own config says
            problems.append(f"{each.name} ({config_folder(each)}): {error}")
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise IncompatibleError(
            f"The result would not fit the config of {place.name} ({place.folder}):\n{lines}"
        )


def _misfits(
    config: Mapping[str, Any], inputs: Sequence[Checkpoint], found: Mapping[str, AlignedTensor]
) -> Iterator[str]:
    wanted = expected_shapes(config)
    lacks_tower = not any(name.startswith("vision_tower.") for name in found)
    if lacks_tower:
        yield _no_tower(inputs)
    for name, shape in wanted.items():
        tensor = found.get(name)
        if tensor is not None and tensor.reference.shape != shape:
            own = tensor.reference
            yield f"{name} ({own.path}) has shape {own.shape}, the config asks for {shape}"
        elif tensor is None and name == "image_newline":
            yield (
                "no model has image_newline, which a LLaVA-NeXT needs: take it from a LLaVA-1.6 "
                "with `modules: {image_newline: NAME}`, or name the config of a LLaVA-1.5"
            )
        elif tensor is None and not (
            (lacks_tower and name.startswith("vision_tower.")) or _is_head(name)
        ):
            yield f"no model has {name}, which the config asks for"
    for name in found:
        if name == "image_newline" and name not in wanted:
            yield "image_newline is of LLaVA-1.6: name the config of a LLaVA-NeXT"
        elif name not in wanted:
            yield f"the config has no use for {name} ({found[name].reference.path})"


def _is_head(name: str) -> bool:
    """An output head may be left out: the result's config then ties it to the embeddings."""
    return any(fnmatchcase(name, head) for head in HEAD_NAMES)


def _no_tower(inputs: Sequence[Checkpoint]) -> str:
    towers = [read_config(config_folder(each)).get("mm_vision_tower") for each in inputs]
    named = next((str(tower) for tower in towers if tower), "")
    what = f" (their configs name {named})" if named else ""
    path = named or "openai/clip-vit-large-patch14-336"
    return (
        f"no model holds a vision tower{what}: say where one is with "
        f"`modules: {{vision_tower: {{path: {path}}}}}`"
    )


def _by_kind(problems: Sequence[str]) -> list[str]:
    """A line for all that differ in numbers alone (of layers), and not too many lines."""
    lines = one_of_each_kind(problems)
    more = len(lines) - MAX_LISTED
    return [*lines[:MAX_LISTED], *([f"... and {more} more kinds of tensors"] if more > 0 else [])]


def _other_settings(config: Mapping[str, Any], model: Checkpoint) -> Iterator[str]:
    """Where the config says other things than a model's own, if that is of the original code."""
    own = read_config(config_folder(model))
    if not is_original_llava(own):
        return
    text, kind = part_settings(config, "text_config"), _decoder_of(own)
    pairs: list[tuple[str, Any, Any]] = [("model_type", kind, text["model_type"])]
    if kind == text["model_type"]:
        theirs = part_settings({"text_config": {**own, "model_type": kind}}, "text_config")
        pairs += [(key, theirs[key], text[key]) for key in _HIDDEN]
        pairs.append(("rope type", _rope_type(theirs), _rope_type(text)))
    layer, feature = own.get("mm_vision_select_layer"), own.get("mm_vision_select_feature")
    pairs.append(("mm_vision_select_layer", layer, config.get("vision_feature_layer", -2)))
    strategy = config.get("vision_feature_select_strategy", "default")
    pairs.append(("mm_vision_select_feature", _FEATURES.get(str(feature), feature), strategy))
    if config["model_type"] == "llava_next" and own.get("image_aspect_ratio") == "anyres":
        grid = _sorted(config.get("image_grid_pinpoints") or _GRID)
        pairs.append(("image_grid_pinpoints", _turned(own.get("image_grid_pinpoints")), grid))
    for key, theirs, ours in pairs:
        if theirs is not None and theirs != ours:
            yield f"{model.name} ({model.folder}) says {key} {theirs}, the config {ours}"


def _decoder_of(original: Mapping[str, Any]) -> str:
    """The language model's type, which the original code has in its class's name."""
    names = original.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else "LlavaLlamaForCausalLM"
    found = re.fullmatch(r"Llava(\w+)ForCausalLM", name)
    kind = found[1].lower() if found else name
    return {"qwen": "qwen2"}.get(kind, kind)


def _rope_type(settings: Mapping[str, Any]) -> str:
    """How positions are scaled, by either generation of transformers' names for it."""
    table = settings.get("rope_scaling") or settings.get("rope_parameters")
    table = table if isinstance(table, dict) else {}
    return str(table.get("rope_type") or table.get("type") or "default")


def _turned(value: Any) -> Any:
    """Resolutions of the original code, which are (width, height), as (height, width)."""
    if isinstance(value, str):
        try:
            value = json.loads(value.replace("(", "[").replace(")", "]"))
        except ValueError:
            return value
    if isinstance(value, list) and all(isinstance(pair, list) for pair in value):
        return _sorted([pair[::-1] for pair in value])
    return value


def _sorted(value: Any) -> Any:
    return sorted(value, key=str) if isinstance(value, list) else value


def _other_tower(config: Mapping[str, Any], place: Checkpoint) -> Iterator[str]:
    """Where the config says other things of the tower than the place that the tower is from."""
    own = read_config(place.folder)
    if own.get("model_type") == "clip_vision_model":
        own = {"vision_config": own}
    if not isinstance(own.get("vision_config"), dict):
        return
    kind = own["vision_config"].get("model_type")
    if kind not in (None, "clip_vision_model"):
        yield f"the vision model of {place.name} is of type {kind}"
        return
    theirs, ours = part_settings(own, "vision_config"), part_settings(config, "vision_config")
    for key in ("num_attention_heads", "hidden_act", "layer_norm_eps"):
        if theirs[key] != ours[key]:
            yield f"{place.name} ({place.folder}) says {key} {theirs[key]}, the config {ours[key]}"
