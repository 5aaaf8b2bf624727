"""A file with one merge, in our own words or in mergekit's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nan_merge.mergekit_yaml import is_mergekit, translate
from nan_merge.recipe import MergeRecipe
from nan_merge.yaml_config import check_document
from nan_merge.yaml_text import read_document


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
    return check_document(document, MergeRecipe, overrides)
