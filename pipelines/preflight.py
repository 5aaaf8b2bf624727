"""What can be known to fail is said before a run starts any worker."""

from __future__ import annotations

from pathlib import Path

from nan_merge.errors import ConfigError
from pipelines.config import RunConfig
from pipelines.extras import require


def check_run(config: RunConfig) -> None:
    """Refuse a run that would fail later for want of a library, a model or a section.

    Raises:
        MissingExtraError: If a library is missing that a later stage needs.
        ConfigError: If the backbone is unknown, or `base` or `clip` is missing.
    """
    tracking = ["mlflow"] if config.track.mlflow else []
    require(["ray", "open_clip", "jinja2", "matplotlib", *tracking])
    if config.experts is not None:
        _check_backbone(config.experts.backbone)
    elif config.base is None or config.clip is None:
        raise ConfigError(
            "A run over your own image towers needs `base` (the pretrained tower) and `clip` (the "
            "folder of the whole pretrained CLIP, whose text tower makes the zero-shot heads)."
        )


def _check_backbone(backbone: str) -> None:
    from evaluators.backends.clip import CONFIG_FOLDER, import_open_clip

    is_path = backbone.endswith(".json")
    path = Path(backbone) if is_path else CONFIG_FOLDER / f"{backbone}.json"
    if path.is_file():
        return
    if is_path:
        raise ConfigError(f"experts.backbone: there is no file {path}.")
    known: list[str] = import_open_clip().list_models()
    if backbone not in known:
        from nan_merge.config_messages import did_you_mean

        own = sorted(file.stem for file in CONFIG_FOLDER.glob("*.json"))
        near = did_you_mean(backbone, [*own, *known])
        raise ConfigError(
            f"experts.backbone: {backbone!r} is neither a model of this package "
            f"({', '.join(own)}) nor one that open_clip knows{near}."
        )
