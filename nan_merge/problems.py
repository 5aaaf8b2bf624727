"""Gather what is wrong with a recipe's models, so that a user hears of all of it at once.

After a problem the rest is looked at as far as it can be judged without what is broken: a model
that cannot be opened hides nothing of the others, and no line is reported that would vanish by
itself once another problem is mended.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from nan_merge.checkpoint import Checkpoint
from nan_merge.coefficients import compute_coefficients
from nan_merge.config_place import num_rows, open_config_place
from nan_merge.errors import NanMergeError
from nan_merge.methods import TensorNorms
from nan_merge.model_reference import open_model, refuse_repeated
from nan_merge.norms import Matrix
from nan_merge.recipe import ConfigPlace, MergeRecipe
from nan_merge.safetensors_file import TensorInfo
from nan_merge.vocabulary import VOCABULARY_NAMES, Matched, match_to_place, match_vocabularies

if TYPE_CHECKING:
    from nan_merge.coefficient_table import CoefficientTable
    from nan_merge.layout import AlignedTensor

Problems = list[NanMergeError]
Result = TypeVar("Result")


def attempt(
    problems: Problems, function: Callable[..., Result], *arguments: object
) -> Result | None:
    """What the function returns, or None after noting the error that a user can mend."""
    try:
        return function(*arguments)
    except NanMergeError as error:
        if str(error) not in map(str, problems):
            problems.append(error)
        return None


def as_one(problems: Problems, purpose: str = "merged") -> NanMergeError:
    """One error that lists all; of their own kind if they are of one kind."""
    if len(problems) == 1:
        return problems[0]
    kinds = {type(problem) for problem in problems}
    kind = kinds.pop() if len(kinds) == 1 else NanMergeError
    lines = [textwrap.indent(str(problem), "    ").strip() for problem in problems]
    listed = "\n".join(f"  - {line}" for line in lines)
    return kind(
        f"These models cannot be {purpose}; {len(problems)} things must be mended:\n{listed}"
    )


def open_each(
    recipe: MergeRecipe, problems: Problems
) -> tuple[Checkpoint | None, list[Checkpoint]]:
    """The base and the models that can be opened, with a problem for every other."""
    base = None
    if recipe.base is not None:
        base = attempt(problems, open_model, recipe.base, "base")
    found = [attempt(problems, open_model, each.path, each.name, base) for each in recipe.models]
    models = [model for model in found if model is not None]
    attempt(problems, refuse_repeated, models)
    return base, models


def open_place(recipe: MergeRecipe, problems: Problems) -> Checkpoint | None:
    """The folder that the result has its config from, if that is none of the models."""
    if not isinstance(recipe.config, ConfigPlace):
        return None
    return attempt(problems, open_config_place, recipe.config.path)


def match_each(
    base: Checkpoint | None, models: Sequence[Checkpoint], tokenizer: str, problems: Problems
) -> Matched | None:
    """What `match_vocabularies` gives, or None with a problem for every model that has one."""
    found = attempt(problems, match_vocabularies, base, models, tokenizer)
    names = [model.name for model in models]
    if found is not None or tokenizer not in ("base", "union", *names):
        return found
    # One error hides others: look at each model beside the one whose rows it must match.
    leader = models[names.index(tokenizer)] if tokenizer in names else models[0]
    for model in models:
        together = [model] if base is not None and tokenizer not in names else [leader, model]
        if model is not leader or len(together) == 1:
            attempt(problems, match_vocabularies, base, together, tokenizer)
    return None


def match_recipe(
    recipe: MergeRecipe,
    base: Checkpoint | None,
    models: Sequence[Checkpoint],
    place: Checkpoint | None,
    problems: Problems,
) -> Matched | None:
    """Bring the embeddings to the result's vocabulary, of a model or of ``place``.

    None if nothing is compared, or after noting why it cannot be done.
    """
    if place is not None:
        return attempt(problems, match_to_place, base, models, place, num_rows(place))
    if recipe.tokenizer is None:
        return None
    return match_each(base, models, recipe.tokenizer, problems)


def without_vocabulary(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint whose embeddings and heads are left out, as they cannot be judged yet."""
    kept = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if not any(fnmatchcase(name, pattern) for pattern in VOCABULARY_NAMES)
    }
    return replace(checkpoint, tensors=kept)


def coefficients_from_headers(
    recipe: MergeRecipe, models: Sequence[str], tensors: Sequence[AlignedTensor]
) -> CoefficientTable:
    """The coefficient table as if every norm were 1, and 0 where a model has the base's own tensor.

    Whatever is refused here is refused with the true norms too: weights that sum to 0, patterns
    that leave no tensor, a task vector that is zero because an adapter leaves a tensor alone.
    Coefficients that take no norms are the true ones.

    Args:
        recipe: The merge.
        models: Names of those models of the recipe that ``tensors`` were found in, in order.
        tensors: What would be merged.

    Raises:
        CoefficientError: As `compute_coefficients`.
    """
    places = [models.index(each.name) if each.name in models else None for each in recipe.models]
    merged = [tensor for tensor in tensors if tensor.is_merged]
    norms = {tensor.name: _unit_norms(tensor, places) for tensor in merged}
    elements = {tensor.name: tensor.reference.num_elements for tensor in merged}
    return compute_coefficients(recipe, list(elements), norms, elements)


def _unit_norms(tensor: AlignedTensor, places: Sequence[int | None]) -> TensorNorms:
    base = tensor.base
    ones, zeros = (1.0,) * len(places), (0.0,) * len(places)
    if base is None:
        return TensorNorms(_diagonal(ones), (), zeros)
    kept = [is_same_tensor(own, base) for own in tensor.finetuned]
    changed = tuple(0.0 if place is not None and kept[place] else 1.0 for place in places)
    return TensorNorms(_diagonal(ones), _diagonal(changed), zeros, zeros)


@lru_cache(maxsize=1024)  # of thousands of tensors, few differ in which models changed them
def _diagonal(values: tuple[float, ...]) -> Matrix:
    size = range(len(values))
    return tuple(tuple(values[i] if i == j else 0.0 for j in size) for i in size)


def is_same_tensor(tensor: TensorInfo, other: TensorInfo) -> bool:
    """Whether both are one place of one file, however its path is written."""
    if tensor is other:
        return True
    if type(tensor) is not TensorInfo or type(other) is not TensorInfo:
        return tensor == other
    return tensor.offset == other.offset and _real(tensor.path) == _real(other.path)


@lru_cache(maxsize=1024)
def _real(path: str) -> str:
    return os.path.realpath(path)
