"""A file with one merge, in our own words or in mergekit's."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from nan_merge.errors import ConfigError
from nan_merge.mergekit_yaml import is_mergekit, translate
from nan_merge.recipe import MergeRecipe
from nan_merge.yaml_config import check_document
from nan_merge.yaml_text import Document, read_document

OF_RUNS = ("evaluate", "merges", "sweep", "experts", "fine_tunes")
"""Top keys that a run file may have, and no recipe."""


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> MergeRecipe:
    """Read a recipe, or a mergekit file as the recipe that does the same.

    Args:
        path: A YAML file in UTF-8; a top key `merge_method` makes it mergekit's.
        overrides: `key=value` each, in the words of our recipes for either kind of file.

    Raises:
        ConfigError: If anything is wrong; the message has a line for every problem.
    """
    document = read_document(path)
    if is_mergekit(document):
        document = translate(document)
    elif is_run(document):
        command = "sweep" if "sweep" in document.value else "run"
        raise ConfigError(
            f"{path} is a run file, and this takes a recipe with one merge. "
            f"`nan-merge {command} {shlex.quote(str(path))}` makes and evaluates its merges."
        )
    return check_document(document, MergeRecipe, overrides)


def is_run(document: Document) -> bool:
    """Whether a file is a run file, by its top keys."""
    value = document.value
    return isinstance(value, dict) and "method" not in value and any(k in value for k in OF_RUNS)


def refuse_recipe(document: Document) -> None:
    """Refuse a recipe where a run file is wanted, rather than list its keys as unknown ones.

    Raises:
        ConfigError: Names the command that takes it.
    """
    value = document.value
    if is_mergekit(document) or (
        isinstance(value, dict) and "method" in value and not any(k in value for k in OF_RUNS)
    ):
        path = shlex.quote(document.name)
        raise ConfigError(
            f"{document.name} is a recipe with one merge, and this takes a run file. "
            f"`nan-merge merge {path} OUT` makes the merge; a run file has it under `merges`, and "
            "what to measure under `evaluate`."
        )
