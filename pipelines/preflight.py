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
        ConfigError: If the backbone, a benchmark or a profile is unknown, or `base`, `clip` or
            the data's folder is missing.
        DataError: If the data's folder is not there.
    """
    tracking = ["mlflow"] if config.track.mlflow else []
    if config.evaluate.is_language:
        backend = config.evaluate.backend.name
        require(["ray", "transformers", backend, "jinja2", "matplotlib", *tracking])
        _check_language(config)
        if config.evaluate.engine.name == "opencompass":
            _check_opencompass(config)
        return
    require(["ray", "open_clip", "jinja2", "matplotlib", *tracking])
    if config.experts is not None:
        _check_backbone(config.experts.backbone)
    elif config.clip is None:
        raise ConfigError(
            "A run over your own image towers needs `clip`, the whole pretrained CLIP: its text "
            "tower makes the zero-shot heads, and its image tower is the base if none is named."
        )
    elif config.backbone is not None:
        from evaluators.backends.clip_sources import known_config

        known_config(config.backbone)
    if config.evaluate.clip_sets:
        from pipelines.image_data import list_sets

        list_sets(config.evaluate.clip_sets, config.evaluate.data)


def _check_language(config: RunConfig) -> None:
    from pipelines.language_benchmarks import find_profile, folder_of

    if config.fine_tunes is None and config.base is None:
        raise ConfigError("A run over your own language models needs `base`, their common base.")
    seen: set[tuple[str, str]] = set()
    for spec in config.evaluate.language_benchmarks:
        profile = find_profile(spec.name, spec.profile)
        folder_of(spec, profile, config.evaluate.data)
        if (profile.benchmark, profile.name) in seen:
            raise ConfigError(
                f"evaluate.benchmarks: {profile.benchmark}/{profile.name} is named twice."
            )
        seen.add((profile.benchmark, profile.name))


def _check_opencompass(config: RunConfig) -> None:
    from pipelines.opencompass_engine import check_opencompass
    from pipelines.opencompass_profiles import for_opencompass

    for spec in config.evaluate.language_benchmarks:
        for_opencompass(spec)
    check_opencompass(config.evaluate.engine, config.evaluate.backend)


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
            f"({', '.join(own)}) nor one that open_clip knows{near or '.'}"
        )
