"""Save and load CLIP: whole, or its image tower alone.

What is merged is the image tower. Its checkpoint folder holds

    config.json         {"architectures": ["OpenClipImageTower"],
                         "model_type": "open_clip_image_tower", "backbone": NAME,
                         "open_clip": open_clip's model config,
                         "preprocess": {"mean": [...], "std": [...]}}
    model.safetensors   the ``visual.*`` tensors of open_clip's CLIP, float32

A whole CLIP is kept in open_clip's own local layout, which
``open_clip.create_model("local-dir:FOLDER")`` opens too.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from evaluators.backends.clip import Clip, ImageTower, new_clip
from nan_merge.errors import CheckpointError
from nan_merge.json_file import read_json_table
from nan_merge.publish import (
    explain_write_errors,
    partial_path,
    sync_path,
    write_text_atomically,
)

MODEL_TYPE = "open_clip_image_tower"
CLIP_CONFIG, CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
TOWER_CONFIG, TOWER_WEIGHTS = "config.json", "model.safetensors"
TOWER_INDEX = "model.safetensors.index.json"
MEND = "Is it the right folder? Then save or download the model again."
# open_clip builds an image tower only with a text tower beside it; this is the least.
NO_TEXT = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}


def save_clip(clip: Clip, folder: Path) -> None:
    """Write a whole CLIP in open_clip's local layout into ``folder``, made if missing.

    Raises:
        OutputError: If the disk is full or not writable.
    """
    tower = clip.tower
    preprocess = {"mean": list(tower.mean), "std": list(tower.std)}
    config = {"model_name": tower.name, "model_cfg": tower.model_config}
    _write_json(folder / CLIP_CONFIG, {**config, "preprocess_cfg": preprocess})
    tensors = {name: each.contiguous() for name, each in clip.model.state_dict().items()}
    save_tensors(tensors, folder / CLIP_WEIGHTS, {"format": "pt"})


def load_clip(folder: Path) -> Clip:
    """Read what ``save_clip`` wrote, or a hub snapshot of a plain CLIP in the same layout.

    Raises:
        CheckpointError: If a file is missing or damaged, or tensors do not fit the config.
    """
    config = read_json_table(folder / CLIP_CONFIG, MEND)
    if "model_cfg" not in config:
        raise CheckpointError(f"{folder / CLIP_CONFIG} has no 'model_cfg'.")
    name = config.get("model_name", folder.name)
    clip = new_clip(name, config["model_cfg"], config.get("preprocess_cfg", {}), seed=0)
    load_strictly(clip.model, _read_tensors([folder / CLIP_WEIGHTS]), folder)
    return clip


def save_image_tower(tower: ImageTower, folder: Path) -> None:
    """Write the checkpoint folder described above into ``folder``, made if missing.

    Raises:
        OutputError: If the disk is full or not writable.
    """
    config = {
        "architectures": ["OpenClipImageTower"],
        "model_type": MODEL_TYPE,
        "backbone": tower.name,
        "open_clip": tower.model_config,
        "preprocess": {"mean": list(tower.mean), "std": list(tower.std)},
    }
    _write_json(folder / TOWER_CONFIG, config)
    tensors = {
        f"visual.{name}": each.float().contiguous()
        for name, each in tower.visual.state_dict().items()
    }
    save_tensors(tensors, folder / TOWER_WEIGHTS, {"format": "pt"})


def load_image_tower(folder: Path) -> ImageTower:
    """Read an image tower checkpoint, in one file or in shards; weights become float32.

    Raises:
        CheckpointError: If a file is missing or damaged, the folder holds another kind of
            model, or tensors are missing, unexpected or of another shape; all are named.
    """
    config = read_json_table(folder / TOWER_CONFIG, MEND)
    if config.get("model_type") != MODEL_TYPE or "open_clip" not in config:
        found = config.get("model_type")
        raise CheckpointError(
            f"{folder / TOWER_CONFIG}: model_type is {found!r}, not {MODEL_TYPE}."
        )
    name, preprocess = config.get("backbone", folder.name), config.get("preprocess", {})
    tower = new_image_tower(name, config["open_clip"], preprocess)
    files = [folder / TOWER_WEIGHTS]
    if (folder / TOWER_INDEX).is_file():
        weight_map = read_json_table(folder / TOWER_INDEX, MEND).get("weight_map", {})
        files = [folder / file for file in sorted(set(weight_map.values()))]
    load_strictly(nn.ModuleDict({"visual": tower.visual}), _read_tensors(files), folder)
    return tower


def new_image_tower(
    name: str, model_config: Mapping[str, Any], preprocess: Mapping[str, Any]
) -> ImageTower:
    """Build an image tower of random weights; for arguments and errors see `new_clip`."""
    config = dict(model_config)
    # The text tower is thrown away, so the smallest one will do.
    clip = new_clip(name, {**config, "text_cfg": NO_TEXT}, preprocess, seed=0)
    return replace(clip.tower, model_config=config)


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file; a reader sees the old file or the new, never a part.

    Raises:
        OutputError: If the disk is full or not writable.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(path)
        try:
            save_file(dict(tensors), partial, metadata=dict(metadata) if metadata else None)
            sync_path(partial)
            partial.replace(path)
        except SafetensorError as error:
            # safetensors keeps the system's error only as text: "... (os error 28)".
            code = re.search(r"\(os error (\d+)\)", str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
        finally:
            partial.unlink(missing_ok=True)


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Give a module its weights.

    Raises:
        CheckpointError: Naming all tensors that are missing, unexpected or of another shape.
    """
    expected = module.state_dict()
    both = sorted(expected.keys() & tensors.keys())
    problems = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
    problems += [f"unexpected {name}" for name in sorted(tensors.keys() - expected.keys())]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in both
        if tensors[name].shape != expected[name].shape
    ]
    if problems:
        raise CheckpointError(f"{folder} does not fit its config: {'; '.join(problems)}.")
    module.load_state_dict(tensors)


def _read_tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors.update(load_file(file))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"Cannot read {file}: {error}") from error
    return tensors


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text_atomically(path, json.dumps(content, indent=2) + "\n")
