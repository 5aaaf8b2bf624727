"""What can be known to fail is said before a run starts any worker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from nan_merge.config_messages import did_you_mean, problem_lines
from nan_merge.errors import ConfigError
from nan_merge.recipe import MergeRecipe
from nan_merge.yaml_text import Document
from pipelines.config import Experts, MergeEntry, RunConfig
from pipelines.extras import require

T = TypeVar("T", bound=BaseModel)


def check_run(config: RunConfig) -> None:
    """Refuse a run that would fail later for want of a library, a model or a section.

    Raises:
        MissingExtraError: If a library is missing that a later stage needs.
        ConfigError: If the backbone, a benchmark or a profile is unknown, `base`, `clip` or
            the data's folder is missing, or no recipe may have one of the merges.
        DataError: If the data's folder is not there.
    """
    check_merges(config)
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
        _check_experts(config, config.experts)
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

        evaluate = config.evaluate
        list_sets([evaluate.clip_set(name) for name in evaluate.clip_sets], evaluate.data)


def check_training(config: RunConfig) -> None:
    """Refuse to train models where that would fail later, or where there is nothing to train.

    Raises:
        MissingExtraError: If a library is missing that training needs.
        ConfigError: If the run trains no models, the backbone is unknown, or the data's folder is
            not named.
        DataError: If training images are missing.
    """
    if config.fine_tunes is not None:
        require(["ray", "transformers"])
    elif config.experts is not None:
        require(["ray", "open_clip"])
        _check_experts(config, config.experts)
    else:
        raise ConfigError(
            "This run file trains nothing: it names its `models`. To fine-tune a CLIP, give "
            "`clip` and `experts: {tasks: [...]}` instead; docs/images.md shows one."
        )


def _check_experts(config: RunConfig, experts: Experts) -> None:
    if config.clip is None:
        _check_backbone(experts.backbone)
        return
    from evaluators.backends.clip_sources import known_config, pretrained_repository

    if config.backbone is not None:
        known_config(config.backbone)
    pretrained_repository(config.clip, config.backbone)
    if config.evaluate.clip_sets:  # the tasks are then such sets, too
        from pipelines.image_data import list_sets

        sets = [config.evaluate.clip_set(task) for task in experts.tasks]
        list_sets(sets, config.evaluate.data, "train")


def check_merges(config: RunConfig) -> None:
    """Refuse merges that no recipe over the run's models may have.

    Raises:
        ConfigError: With a line for every problem of every merge.
    """
    problems: list[str] = []
    for entry in config.merges:
        try:
            check_recipe(entry, config.model_names())
        except ConfigError as error:
            problems += [f"merges: {line}" for line in str(error).splitlines()]
    if problems:
        raise ConfigError("\n".join(problems))


def check_recipe(entry: MergeEntry, names: Sequence[str]) -> None:
    """Check a merge against models that are known by name; their files may not be there yet.

    Raises:
        ConfigError: With a line for every problem.
    """
    apart = {"name", "models", "adamerging"}
    content = entry.model_dump(mode="json", by_alias=True, exclude=apart)
    content |= {"models": list(entry.models or names), "base": "base"}
    checked(MergeRecipe, content, entry.name)


def checked(schema: type[T], content: dict[str, Any], name: str) -> T:
    """What a schema makes of values that no file holds.

    Raises:
        ConfigError: With a line for every problem, each of which begins with ``name``.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        lines = problem_lines(schema, error, Document(name, content))
        raise ConfigError("\n".join(sorted(lines))) from error


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
        own = sorted(file.stem for file in CONFIG_FOLDER.glob("*.json"))
        near = did_you_mean(backbone, [*own, *known], ".")
        raise ConfigError(
            f"experts.backbone: {backbone!r} is neither a model of this package "
            f"({', '.join(own)}) nor one that open_clip knows{near}"
        )
