"""Tensors that are not in every model: errors, unless the recipe says what to do with them.

``missing:`` is one policy, or patterns of tensor names (`*` stands for anything) with a policy
each, of which the first that matches counts; a tensor that none matches is an error.

- ``error``: the merge is refused, and every such tensor listed.
- ``base``: the result has the base's tensors, neither more nor fewer. A model that lacks one
  counts as not having changed it (its task vector is zero); one that only models have is left out.
- ``drop``: the result has the tensors that base and models all have.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from nan_merge.checkpoint import Checkpoint
from nan_merge.lora import config_folder
from nan_merge.modules import (
    explain_lacking,
    family_of_checkpoint,
    lacking_modules,
    module_of,
)
from nan_merge.naming import Family
from nan_merge.safetensors_file import TensorInfo
from nan_merge.vocabulary import VOCABULARY_NAMES

MissingPolicy = Literal["error", "base", "drop"]
Missing = MissingPolicy | dict[str, MissingPolicy]
# The output head of language models, which may be the input embeddings under a second name.
HEAD_NAMES = ("*lm_head.weight", "*embed_out.weight", "*output_projection.weight")


def missing_policy(missing: Missing, name: str) -> MissingPolicy:
    """What the recipe says of a tensor that is not in every model."""
    if not isinstance(missing, dict):
        return missing
    for pattern, policy in missing.items():
        if fnmatchcase(name, pattern):
            return policy
    return "error"


def find_problems(
    base: Checkpoint | None, models: Sequence[Checkpoint], missing: Missing
) -> Iterator[str]:
    """Why models cannot be merged, a line each: tensors that are missing or do not correspond."""
    reference = base or models[0]
    yield from _useless_patterns([reference, *models], missing)
    family = family_of_checkpoint(reference)
    for model in models:
        lacking = lacking_modules(model, reference)
        told = False
        for name, expected in reference.tensors.items():
            found = model.tensors.get(name)
            if found is not None:
                yield from _misfit(name, reference, expected, model, found)
                continue
            policy = missing_policy(missing, name)
            if policy == "error" and module_of(name, family) in lacking:
                if not told:
                    yield explain_lacking(model, lacking)
                told = True
            elif policy == "error":
                hint = _tied_head(name, reference, model, lacking=model)
                yield f"{model.name} ({model.folder}) lacks tensor {name}{hint}"
            elif policy == "base" and base is None:
                yield (
                    f"{model.name} ({model.folder}) lacks tensor {name}, and `missing: base` needs "
                    "a `base`; name one, or use `drop`"
                )
        yield from _only_in(model, reference, family, missing)


def _only_in(
    model: Checkpoint, reference: Checkpoint, family: Family | None, missing: Missing
) -> Iterator[str]:
    lacking = lacking_modules(reference, model) if family is not None else ()
    told = False
    for name in model.tensors:
        if name in reference.tensors or missing_policy(missing, name) != "error":
            continue
        if module_of(name, family) in lacking:
            if not told:
                yield explain_lacking(reference, lacking, model.name)
            told = True
        else:
            hint = _tied_head(name, reference, model, lacking=reference)
            yield f"{model.name} has a tensor that {reference.name} lacks: {name}{hint}"


def _useless_patterns(checkpoints: Sequence[Checkpoint], missing: Missing) -> Iterator[str]:
    for pattern in missing if isinstance(missing, dict) else ():
        names = (name for checkpoint in checkpoints for name in checkpoint.tensors)
        if not any(fnmatchcase(name, pattern) for name in names):
            yield f"`missing`: the pattern {pattern!r} matches no tensor of any model"


def _misfit(
    name: str, reference: Checkpoint, expected: TensorInfo, model: Checkpoint, found: TensorInfo
) -> Iterator[str]:
    if found.shape != expected.shape:
        yield (
            f"{name}: {model.name} has shape {found.shape} ({found.path}), "
            f"{reference.name} has {expected.shape}{_rows_hint(name, expected, found)}"
        )
    elif found.dtype != expected.dtype and not (
        found.dtype.is_floating_point and expected.dtype.is_floating_point
    ):
        yield (
            f"{name}: {model.name} holds {found.dtype} ({found.path}), "
            f"{reference.name} {expected.dtype}"
        )


def _rows_hint(name: str, expected: TensorInfo, found: TensorInfo) -> str:
    is_vocabulary = any(fnmatchcase(name, pattern) for pattern in VOCABULARY_NAMES)
    if not is_vocabulary or found.shape[1:] != expected.shape[1:]:
        return ""
    return ". Their vocabularies differ: put each model's tokenizer files beside its weights"


def _tied_head(name: str, reference: Checkpoint, model: Checkpoint, lacking: Checkpoint) -> str:
    """What to do about an output head that one of two models shares with its embeddings."""
    if not any(fnmatchcase(name, pattern) for pattern in HEAD_NAMES):
        return ""
    ties = ties_embeddings(config_folder(reference))
    if ties:
        own_head = ties_embeddings(config_folder(model)) is False
        lost = f", which gives up the head that {model.name} trained" if own_head else ""
        return (
            f". The result takes {reference.name}'s config, which ties it to the input embeddings "
            f"(tie_word_embeddings): leave it out with `missing: {{{name}: drop}}`{lost}"
        )
    if ties is False and lacking is model and ties_embeddings(config_folder(model)):
        return (
            f". {model.name} ties it to its input embeddings (tie_word_embeddings), "
            f"{reference.name} does not: save {model.name} with `tie_word_embeddings=False` and a "
            f"copy of the embeddings as {name}, or keep {reference.name}'s with "
            f"`missing: {{{name}: base}}`"
        )
    return ""


def ties_embeddings(folder: Path) -> bool | None:
    """Whether a model's output head is its input embeddings; None if its config does not say."""
    try:
        config: Any = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None  # a folder without config holds no language model of transformers
    if not isinstance(config, dict):
        return None
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and isinstance(part.get("tie_word_embeddings"), bool):
            return part["tie_word_embeddings"]
    return None
