"""Read image towers and whole CLIPs of any common form, and write them in ours.

| form | known by |
|---|---|
| image tower of ours | ``config.json`` with model_type open_clip_image_tower |
| open_clip's folder, also on the hub | ``open_clip_config.json`` |
| CLIP or CLIP vision tower of transformers | ``config.json`` with model_type clip... |
| state dict of open_clip or task_vectors | tensors ``visual.*``, ``model.visual.*``; needs a name |

Of a vision tower that was saved without its projection, that of the pretrained CLIP is taken:
fine-tuning it in transformers leaves the projection as it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from evaluators.backends.clip import (
    Clip,
    ImageTower,
    import_open_clip,
    model_config_path,
    new_clip,
)
from evaluators.backends.clip_architecture import describe_tower, open_clip_config
from evaluators.backends.clip_checkpoints import (
    CLIP_CONFIG,
    MEND,
    MODEL_TYPE,
    TOWER_CONFIG,
    load_clip,
    load_strictly,
    new_image_tower,
    save_clip,
    save_image_tower,
)
from evaluators.backends.clip_names import (
    VISUAL,
    from_transformers,
    open_clip_prefix,
    strip_prefix,
)
from nan_merge.checkpoint import Checkpoint, open_checkpoint
from nan_merge.errors import CheckpointError, ConfigError
from nan_merge.json_file import read_json_table

HF_TYPES = ("clip", "clip_vision_model")
PRETRAINED_SCHEME = "open_clip://"
_IMAGE_MEANS = "preprocessor_config.json"


@dataclass(frozen=True)
class ClipSource:
    """A checkpoint and how to read it.

    Attributes:
        checkpoint: Its headers.
        form: ``tower``, ``open_clip``, ``transformers`` or ``state_dict``.
        name: Of the architecture, or of the folder.
        model_config: open_clip's; without ``text_cfg`` if there is no text tower.
        preprocess: ``mean`` and ``std`` of the pixels, where they are told.
    """

    checkpoint: Checkpoint
    form: str
    name: str
    model_config: dict[str, Any]
    preprocess: dict[str, Any]


def open_source(path: str, backbone: str | None = None) -> ClipSource:
    """Find out what a checkpoint is.

    Args:
        path: A folder, a file of weights, or a hub id.
        backbone: Name of an open_clip model, for state dicts, which do not tell their own; if it
            is given, others must be built like it.

    Raises:
        CheckpointError: If there is none, it is damaged or pickled code, or another model.
        ConfigError: If a state dict comes without ``backbone``, or open_clip does not know it.
    """
    checkpoint = open_checkpoint(path)
    source = _identify(checkpoint, path, backbone)
    if backbone is not None:
        wanted = known_config(backbone)
        compare_towers(source, wanted, f"`backbone`, {backbone},")
    return source


def known_config(backbone: str) -> dict[str, Any]:
    """open_clip's config of a model that it, or this package, knows by name.

    Raises:
        ConfigError: If neither does.
    """
    from nan_merge.config_messages import did_you_mean

    if (own := model_config_path(backbone)).is_file():
        return json.loads(own.read_text(encoding="utf-8"))
    open_clip = import_open_clip()
    config = open_clip.get_model_config(backbone)
    if config is None:
        near = did_you_mean(backbone, open_clip.list_models(), ".")
        raise ConfigError(f"open_clip has no model {backbone!r}{near}")
    return config


def compare_towers(source: ClipSource, wanted: Mapping[str, Any], whose: str) -> None:
    """See that a source's image tower is built like another.

    Raises:
        CheckpointError: If it is not; the message shows both.
    """
    config = source.model_config
    if _is_bare(source):  # the width of the embedding is then the pretrained CLIP's
        config = {**config, "embed_dim": wanted["embed_dim"]}
    found, expected = describe_tower(config), describe_tower(wanted)
    if found == expected:
        return
    quick = bool(config.get("quick_gelu")), bool(wanted.get("quick_gelu"))
    mend = "Only towers of one architecture can be merged, with the heads of the same CLIP."
    if quick[0] != quick[1]:
        mend = (
            "QuickGELU mismatch: with the other activation the same weights give other, worse "
            "answers. OpenAI's weights need the models of open_clip that end in -quickgelu."
        )
    raise CheckpointError(
        f"{source.checkpoint.folder} is a {found}, but {whose} is a {expected}. {mend}"
    )


def write_image_tower(source: ClipSource, clip_folder: Path, output: Path) -> None:
    """Write a source's image tower as a checkpoint folder of ours, float32.

    Args:
        source: What to read.
        clip_folder: The pretrained CLIP, in open_clip's layout.
        output: The folder to fill.

    Raises:
        CheckpointError: If tensors are missing, unexpected or of another shape.
        OutputError: If the disk is full or not writable.
    """
    clip = load_clip(clip_folder)
    tensors = {
        name: tensor
        for name, tensor in _read_all(source, only=VISUAL).items()
        if name.startswith(VISUAL)
    }
    if _is_bare(source):
        projection = clip.model.state_dict()[f"{VISUAL}proj"]
        tensors[f"{VISUAL}proj"] = projection
    config = {**clip.tower.model_config, **source.model_config}
    config["embed_dim"] = clip.tower.model_config["embed_dim"]
    preprocess = source.preprocess or {"mean": clip.tower.mean, "std": clip.tower.std}
    tower = new_image_tower(clip.tower.name, config, preprocess)
    _load_tower(tower, tensors, source.checkpoint.folder)
    save_image_tower(tower, output)


def write_clip(source: ClipSource, output: Path) -> None:
    """Write a whole CLIP in open_clip's layout, from a source that has both towers.

    Raises:
        CheckpointError: If it has no text tower, or tensors do not fit.
        OutputError: If the disk is full or not writable.
    """
    if "text_cfg" not in source.model_config or source.form == "tower":
        raise CheckpointError(
            f"{source.checkpoint.folder} has no text tower, which makes the zero-shot heads. "
            "`clip` must be a whole CLIP."
        )
    clip = new_clip(source.name, source.model_config, source.preprocess, seed=0)
    load_strictly(clip.model, _read_all(source), source.checkpoint.folder)
    save_clip(_named(clip, source.name), output)


def convert_tower(path: str, backbone: str | None, clip_folder: Path, output: Path) -> None:
    """Task body: `write_image_tower` of the checkpoint at a path."""
    write_image_tower(open_source(path, backbone), clip_folder, output)


def convert_clip(path: str, backbone: str | None, _: Path, output: Path) -> None:
    """Task body: `write_clip` of the checkpoint at a path."""
    write_clip(open_source(path, backbone), output)


def pretrained_repository(clip: str, backbone: str | None = None) -> str | None:
    """The hub's repository of ``open_clip://MODEL/TAG``; None for another kind of path.

    Raises:
        ConfigError: If open_clip does not know it, or the weights need the other activation.
    """
    if not clip.startswith(PRETRAINED_SCHEME):
        return None
    from nan_merge.config_messages import did_you_mean

    model, _, tag = clip.removeprefix(PRETRAINED_SCHEME).partition("/")
    config = known_config(model)
    open_clip = import_open_clip()
    weights = open_clip.get_pretrained_cfg(model, tag)
    if not weights:
        known = open_clip.list_pretrained_tags_by_model(model)
        near = did_you_mean(tag, known, ".")
        raise ConfigError(f"{clip}: open_clip has no weights {tag!r} of {model}{near}")
    if bool(weights.get("quick_gelu")) != bool(config.get("quick_gelu")):
        other = f"{model}-quickgelu" if weights.get("quick_gelu") else model
        raise ConfigError(
            f"{clip}: QuickGELU mismatch: these weights were trained with the other activation "
            f"than {model} has. Did you mean {PRETRAINED_SCHEME}{other}/{tag}?"
        )
    if backbone not in (None, model):
        raise ConfigError(f"`backbone` is {backbone}, but `clip` is {clip}.")
    repository = weights.get("hf_hub", "").strip("/")
    if not repository:
        raise ConfigError(f"{clip}: open_clip has no repository on the hub for these weights.")
    return repository


def _named(clip: Clip, name: str) -> Clip:
    return replace(clip, tower=replace(clip.tower, name=name))


def _identify(checkpoint: Checkpoint, path: str, backbone: str | None) -> ClipSource:
    folder, name = checkpoint.folder, backbone or checkpoint.name
    is_file = Path(path).is_file()  # beside one, a config may be of something else
    if not is_file and (folder / CLIP_CONFIG).is_file():
        config = read_json_table(folder / CLIP_CONFIG, MEND)
        if "model_cfg" not in config:
            raise CheckpointError(f"{folder / CLIP_CONFIG} has no 'model_cfg'.")
        preprocess = config.get("preprocess_cfg", {})
        named = config.get("model_name", name)
        return ClipSource(checkpoint, "open_clip", named, config["model_cfg"], preprocess)
    if not is_file and (folder / TOWER_CONFIG).is_file():
        config = read_json_table(folder / TOWER_CONFIG, MEND)
        if config.get("model_type") == MODEL_TYPE:
            named, preprocess = config.get("backbone", name), config.get("preprocess", {})
            return ClipSource(checkpoint, "tower", named, config["open_clip"], preprocess)
        if config.get("model_type") in HF_TYPES:
            model_config = open_clip_config(config, str(folder / TOWER_CONFIG))
            preprocess = _read_means(folder)
            return ClipSource(checkpoint, "transformers", name, model_config, preprocess)
        raise CheckpointError(
            f"{folder / TOWER_CONFIG}: model_type is {config.get('model_type')!r}; an image tower "
            f"is {MODEL_TYPE}, or {' or '.join(HF_TYPES)} of transformers."
        )
    return _state_dict(checkpoint, path, backbone)


def _state_dict(checkpoint: Checkpoint, path: str, backbone: str | None) -> ClipSource:
    prefix = open_clip_prefix(checkpoint.tensors)
    if prefix is None:
        first = ", ".join(list(checkpoint.tensors)[:3])
        raise CheckpointError(
            f"{path} is no image tower of open_clip or task_vectors: it has no tensor "
            f"visual.conv1.weight or model.visual.conv1.weight, but {first}, ..."
        )
    if backbone is None:
        raise ConfigError(
            f"{path} is a state dict and does not tell its architecture. Name it with `backbone`, "
            "e.g. `backbone: ViT-B-32-quickgelu`."
        )
    config = dict(known_config(backbone))
    has_text = f"{prefix}transformer.resblocks.0.ln_1.weight" in checkpoint.tensors
    if not has_text:  # task_vectors' encoders lack their text tower, and keep what is around it
        config.pop("text_cfg")
    return ClipSource(checkpoint, "state_dict", backbone, config, {})


def _read_means(folder: Path) -> dict[str, Any]:
    path = folder / _IMAGE_MEANS
    if not path.is_file():
        return {}
    config = read_json_table(path, MEND)
    keys = {"mean": "image_mean", "std": "image_std"}
    return {ours: config[theirs] for ours, theirs in keys.items() if theirs in config}


def _is_bare(source: ClipSource) -> bool:
    """Whether it is a vision tower of transformers without its projection."""
    return source.form == "transformers" and "visual_projection.weight" not in (
        source.checkpoint.tensors
    )


def _read_all(source: ClipSource, only: str = "") -> dict[str, Tensor]:
    """The source's tensors in float32 under open_clip's names, where these begin with ``only``."""
    from safetensors import safe_open

    checkpoint = source.checkpoint
    files = {str(file): safe_open(str(file), "pt") for file in checkpoint.files}

    def read(name: str) -> Tensor:
        return files[str(checkpoint.tensors[name].path)].get_tensor(name).float()

    if source.form == "transformers":
        return from_transformers(checkpoint.tensors, read, str(checkpoint.folder))
    prefix = open_clip_prefix(checkpoint.tensors)
    if prefix is None:
        raise CheckpointError(f"{checkpoint.folder} has no tensor visual.conv1.weight.")
    names = strip_prefix(checkpoint.tensors, prefix)
    return {ours: read(stored) for ours, stored in names.items() if ours.startswith(only)}


def _load_tower(tower: ImageTower, tensors: dict[str, Tensor], folder: Path) -> None:
    from torch import nn

    load_strictly(nn.ModuleDict({"visual": tower.visual}), tensors, folder)
