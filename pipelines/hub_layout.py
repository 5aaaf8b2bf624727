"""Models in the layout of the original LLaVA code, as checkpoints that backends can load."""

from __future__ import annotations

from pathlib import Path

from nan_merge.merge import merge_checkpoint
from nan_merge.naming import is_original_llava, read_config
from nan_merge.recipe import MergeRecipe, ModelReference

FOLDER = "hub-layout"


def in_hub_layout(
    base: str | None, model: ModelReference, folder: Path, run_folder: Path, name: str
) -> Path:
    """Where a model can be loaded from: its own folder, or a copy in the hub's layout.

    The copy is made once, with the base's config, processor and vocabulary; what the model lacks,
    such as a vision tower that it did not train, is the base's.

    Args:
        base: The run's base model.
        model: The model.
        folder: Where it lies.
        run_folder: Of the run, which the copy goes to.
        name: What the copy's folder is called.

    Raises:
        NanMergeError: If the model does not fit the base.
    """
    if base is None or not is_original_llava(read_config(folder)):
        return folder
    recipe = MergeRecipe.model_validate(
        {"base": base, "models": [model], "method": "passthrough", "missing": "base"}
    )
    return merge_checkpoint(recipe, run_folder / FOLDER / name).output
