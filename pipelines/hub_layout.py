"""Models in the layout of the original LLaVA code, as checkpoints that backends can load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nan_merge.hub import resolve_folder
from nan_merge.merge import merge_checkpoint
from nan_merge.naming import is_original_llava, read_config
from nan_merge.recipe import ConfigPlace, MergeRecipe, ModelReference, ModulePlace

FOLDER = "hub-layout"


def in_hub_layout(
    base: str | None,
    model: ModelReference,
    folder: Path,
    run_folder: Path,
    name: str,
    like: Sequence[MergeRecipe] = (),
) -> Path:
    """Where a model can be loaded from: its own folder, or a copy in the hub's layout.

    The copy is made once, with the base's config, processor and vocabulary; what the model lacks,
    such as a vision tower that it did not train, is the base's. If the base is in the original
    layout, too, these come from the folders that the first of the merges names which has its
    config from such a folder.

    Args:
        base: The run's base model; None if the model is the base.
        model: The model.
        folder: Where it lies.
        run_folder: Of the run, which the copy goes to.
        name: What the copy's folder is called.
        like: The run's merges.

    Returns:
        Its own folder if it needs no copy, or nothing says where a config is.

    Raises:
        NanMergeError: If the model does not fit the base, or the config that it gets.
    """
    if not is_original_llava(read_config(folder)):
        return folder
    content: dict[str, Any] = {"models": [model], "method": "passthrough"}
    if base is not None:
        content |= {"base": base, "missing": "base"}
    if base is None or is_original_llava(read_config(resolve_folder(base))):
        placed = [each for each in like if isinstance(each.config, ConfigPlace)]
        if not placed:
            return folder
        sources = placed[0].modules.items()
        modules = {part: place for part, place in sources if isinstance(place, ModulePlace)}
        content |= {"config": placed[0].config, "modules": modules}
    return merge_checkpoint(MergeRecipe.model_validate(content), run_folder / FOLDER / name).output
