"""Merge fine-tuned models that share a base: streaming, deterministic, with NAN coefficients.

from nan_merge import MergeRecipe, merge_checkpoint

recipe = MergeRecipe.model_validate(
{"base": "./base", "models": ["./math", "./code"], "method": "ties", "coefficients": "nan"}
)
merge_checkpoint(recipe, Path("merged"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nan_merge.checkpoint import open_checkpoint
    from nan_merge.errors import NanMergeError
    from nan_merge.merge import merge_checkpoint, merge_checkpoints, merge_to_url
    from nan_merge.plan import plan_merge
    from nan_merge.recipe import MergeRecipe
    from nan_merge.recipe_file import load_recipe
    from nan_merge.verify import verify_checkpoint
    from nan_merge.yaml_config import load_config

_HOMES = {
    "MergeRecipe": "nan_merge.recipe",
    "NanMergeError": "nan_merge.errors",
    "load_config": "nan_merge.yaml_config",
    "load_recipe": "nan_merge.recipe_file",
    "merge_checkpoint": "nan_merge.merge",
    "merge_checkpoints": "nan_merge.merge",
    "merge_to_url": "nan_merge.merge",
    "open_checkpoint": "nan_merge.checkpoint",
    "plan_merge": "nan_merge.plan",
    "verify_checkpoint": "nan_merge.verify",
}

__all__ = [
    "MergeRecipe",
    "NanMergeError",
    "load_config",
    "load_recipe",
    "merge_checkpoint",
    "merge_checkpoints",
    "merge_to_url",
    "open_checkpoint",
    "plan_merge",
    "verify_checkpoint",
]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: torch is heavy, `--help` is not."""
    if name not in _HOMES:
        raise AttributeError(f"module 'nan_merge' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
