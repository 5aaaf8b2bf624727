"""Open what a recipe calls a model: a checkpoint, ``base+adapter``, or an adapter alone."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from nan_merge.checkpoint import Checkpoint, open_checkpoint
from nan_merge.errors import CheckpointError, IncompatibleError
from nan_merge.hub import resolve_folder
from nan_merge.lora import config_folder, open_adapter
from nan_merge.lora_config import ADAPTER_CONFIG, read_adapter_config

logger = logging.getLogger(__name__)

MODEL_WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")


def refuse_repeated(models: Sequence[Checkpoint]) -> None:
    """Refuse a model that is named twice.

    Raises:
        IncompatibleError: With the names and the folder.
    """
    # One adapter on two bases is two models, so the base's folder counts too.
    places = [(model.folder.resolve(), config_folder(model).resolve()) for model in models]
    for place, count in Counter(places).items():
        if count > 1:
            same = [model.name for model, own in zip(models, places, strict=True) if own == place]
            raise IncompatibleError(
                f"Models {' and '.join(same)} are the same folder, {place[0]}. A model that is "
                "merged with itself only counts more: name it once and give it a `weight`."
            )


def split_reference(path: str) -> tuple[str, str | None]:
    """``base+adapter`` -> (base, adapter); a path that exists is never split.

    >>> split_reference("org/model+org/adapter")
    ('org/model', 'org/adapter')
    """
    base, plus, adapter = path.rpartition("+")
    if not plus or not base or not adapter:
        return path, None
    with suppress(OSError, RuntimeError):  # too long a name; a user (`~name`) who is not there
        if Path(path).expanduser().exists():
            return path, None
    return base, adapter


def open_model(path: str, name: str, recipe_base: Checkpoint | None = None) -> Checkpoint:
    """Open a checkpoint, ``base+adapter``, or an adapter that names its base.

    Args:
        path: Folder, file or hub id, or two of them joined by ``+``.
        name: What to call it.
        recipe_base: The recipe's base, which is not opened twice and which an adapter stands on
            whose own base cannot be found.

    Raises:
        CheckpointError: If one of them is missing, damaged, or of a kind that cannot be merged.
    """
    base_path, adapter_path = split_reference(path)
    if adapter_path is not None:
        base = _open_base(base_path, recipe_base)
        return open_adapter(resolve_folder(adapter_path), base, name)
    folder = resolve_folder(path)
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    if is_adapter and not any(any(folder.glob(pattern)) for pattern in MODEL_WEIGHTS):
        return open_adapter(folder, _find_base(folder, recipe_base), name)
    return open_checkpoint(path, name)


def _open_base(path: str, recipe_base: Checkpoint | None) -> Checkpoint:
    if split_reference(path)[1] is None and recipe_base is not None:
        folder = resolve_folder(path).resolve()
        if type(recipe_base) is Checkpoint and folder == recipe_base.folder.resolve():
            return recipe_base
    return open_model(path, PurePosixPath(path).name, recipe_base)


def _find_base(folder: Path, recipe_base: Checkpoint | None) -> Checkpoint:
    """The base that an adapter's config names; the recipe's if that cannot be found."""
    config = read_adapter_config(folder)
    named, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(named, str) or not named:
        if recipe_base is None:
            raise CheckpointError(
                f"{folder / ADAPTER_CONFIG} does not name its base model. "
                "Write the model as `BASE+ADAPTER`, or give the recipe a `base`."
            )
        return recipe_base
    if (folder / named).is_dir():  # an absolute path, or one beside the adapter
        return _open_base(str(folder / named), recipe_base)
    same_name = recipe_base is not None and PurePosixPath(named).name == recipe_base.folder.name
    if recipe_base is not None and same_name and not Path(named).exists():
        return recipe_base
    try:
        is_hub_id = revision and not Path(named).exists()
        return _open_base(f"{named}@{revision}" if is_hub_id else named, recipe_base)
    except CheckpointError as error:
        if recipe_base is None:
            raise CheckpointError(
                f"{folder / ADAPTER_CONFIG} names the base {named}, which cannot be opened: "
                f"{error} Or write the model as `BASE+ADAPTER`."
            ) from error
        logger.warning(
            "%s names the base %s, which cannot be found; the recipe's base %s takes its place.",
            folder / ADAPTER_CONFIG,
            named,
            recipe_base.folder,
        )
        return recipe_base
