"""A run's own image towers, of whatever form, as checkpoints that can be merged and evaluated.

What is not in this project's form is converted once, into the cache, under a key of its content.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evaluators.backends.clip_checkpoints import CLIP_CONFIG, CLIP_WEIGHTS, MEND
from evaluators.backends.clip_sources import (
    ClipSource,
    compare_towers,
    convert_clip,
    convert_tower,
    open_source,
    pretrained_repository,
)
from nan_merge.errors import ConfigError
from nan_merge.fingerprint import digest_text, fingerprint
from nan_merge.json_file import read_json_table
from nan_merge.publish import publish_folder
from nan_merge.recipe import ModelReference
from nan_merge.tasks import Task
from pipelines.config import RunConfig
from pipelines.workers import Workers

# Raise it when the same checkpoint would be converted into other tensors.
CONVERSION_VERSION = 1


@dataclass(frozen=True)
class ImageTowers:
    """Where they lie.

    Attributes:
        clip: Folder of the whole pretrained CLIP, in open_clip's layout.
        base: Folder of the base model's image tower.
        models: The fine-tuned image towers.
    """

    clip: Path
    base: str
    models: tuple[ModelReference, ...]


def prepare_towers(config: RunConfig, workers: Workers) -> ImageTowers:
    """Read the run's CLIP and image towers, and convert those that need it.

    Raises:
        CheckpointError: If one is missing, damaged, pickled code, or built otherwise than the CLIP.
        ConfigError: If the CLIP's name is unknown, or a state dict comes without `backbone`.
    """
    assert config.clip is not None, "checked before anything ran"
    repository = pretrained_repository(config.clip, config.backbone)
    whole = open_source(repository or config.clip, config.backbone)
    clip = _clip_folder(whole, repository or config.clip, config, workers)
    if config.base is None:
        base, path = open_source(str(clip)), str(clip)
    else:
        base, path = open_source(config.base, config.backbone), config.base
    sources = {"the base": (base, path)}
    for model in config.models:
        sources[model.name] = (open_source(model.path, config.backbone), model.path)
    for source, _ in sources.values():
        compare_towers(source, whole.model_config, f"the CLIP at {config.clip}")
    kept = config.cache / "towers"
    folders: dict[str, str] = {}
    tasks: list[Task] = []
    for name, (source, path) in sources.items():
        if source.form == "tower":
            folders[name] = path
            continue
        key = _key(source, config, fingerprint(open_source(str(clip)).checkpoint))
        target = (kept / f"{source.name.replace('/', '-')}-{key[:16]}").absolute()
        folders[name] = str(target)
        if not target.is_dir():
            arguments = (convert_tower, path, config.backbone, clip, target)
            tasks.append(Task(name, _publish, arguments, 1))
    workers.run_tasks("Converting image towers", list({t.arguments[-1]: t for t in tasks}.values()))
    models = tuple(
        model.model_copy(update={"path": folders[model.name]}) for model in config.models
    )
    return ImageTowers(clip, folders["the base"], models)


def image_size(clip: Path) -> int:
    """Height and width of a CLIP's images in pixels.

    Raises:
        CheckpointError: If its config is damaged.
        ConfigError: If its images are not square, or not scaled and cropped as OpenAI's CLIP does.
    """
    config = read_json_table(clip / CLIP_CONFIG, MEND)
    preprocess = config.get("preprocess_cfg", {})
    for key, only in (("interpolation", "bicubic"), ("resize_mode", "shortest")):
        if (found := preprocess.get(key, only)) != only:
            raise ConfigError(f"{clip / CLIP_CONFIG}: {key} is {found}; only {only} is supported.")
    size = config["model_cfg"]["vision_cfg"].get("image_size", 224)
    if not isinstance(size, int):
        raise ConfigError(
            f"{clip / CLIP_CONFIG}: image_size is {size}; only squares are supported."
        )
    return size


def _clip_folder(whole: ClipSource, path: str, config: RunConfig, workers: Workers) -> Path:
    """The folder of the whole CLIP in open_clip's layout."""
    folder = whole.checkpoint.folder
    if whole.form == "open_clip" and (folder / CLIP_WEIGHTS).is_file():
        return folder
    target = (config.cache / "clips" / _key(whole, config, "")[:16]).absolute()
    if not target.is_dir():
        arguments = (convert_clip, path, config.backbone, target, target)
        workers.run_tasks("Converting the CLIP", [Task("clip", _publish, arguments, 1)])
    return target


def _key(source: ClipSource, config: RunConfig, clip: str) -> str:
    content = {
        "version": CONVERSION_VERSION,
        "weights": fingerprint(source.checkpoint),
        "config": source.model_config,
        "preprocess": source.preprocess,
        "name": source.name,
        "backbone": config.backbone,
        "clip": clip,  # a vision tower without its projection gets the CLIP's
    }
    return digest_text(json.dumps(content, sort_keys=True))


def _publish(
    convert: Callable[[str, str | None, Path, Path], None],
    path: str,
    backbone: str | None,
    clip: Path,
    target: Path,
) -> None:
    """Task body: convert a checkpoint into a folder that appears when it is whole."""
    with publish_folder(target) as staging:
        convert(path, backbone, clip, staging)
