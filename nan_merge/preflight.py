"""All that can be known before a merge: every problem, and what becomes of every tensor."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nan_merge.checkpoint import Checkpoint
from nan_merge.device import chosen_device
from nan_merge.errors import OutputError
from nan_merge.layout import AlignedTensor
from nan_merge.lora_tensor import LoraTensor
from nan_merge.manifest import MANIFEST_NAME, is_whole, read_manifest
from nan_merge.methods import METHODS
from nan_merge.object_output import find_result, local_copy
from nan_merge.plan import MergePlan, check_disk, find_plan
from nan_merge.problems import (
    as_one,
    attempt,
    coefficients_from_headers,
    is_same_tensor,
)
from nan_merge.publish import explain_write_errors, refuse_taken
from nan_merge.recipe import MergeRecipe
from nan_merge.row_mapped import RowMappedTensor
from nan_merge.safetensors_file import TensorInfo

MAX_LISTED_TOKENS = 5
# Fields of a recipe that say where its models lie, and not what is made of them.
PLACES = ("base", "path")


def preflight(
    recipe: MergeRecipe, output: Path | str | None = None, staging: Path | None = None
) -> MergePlan:
    """The plan of a recipe that can be merged, as far as headers and disks tell.

    Args:
        recipe: What to merge and how.
        output: Where the result would go, a folder or a URL; its place and disk are checked only
            if it is given.
        staging: As in `nan_merge.merge.merge_to_url`.

    Raises:
        NanMergeError: With every problem and its mend.
    """
    plan, problems = find_plan(recipe)
    attempt(problems, chosen_device, recipe.device)
    if isinstance(output, str):
        attempt(problems, check_url, recipe, output, staging)
        output = local_copy(output, staging)
    elif output is not None:
        attempt(problems, check_output, recipe, plan, output)
    if output is not None and plan is not None:
        attempt(problems, check_disk, [(plan, output)])
    if plan is None or problems:
        raise as_one(problems)
    return plan


def check_output(recipe: MergeRecipe, plan: MergePlan | None, output: Path) -> None:
    """Refuse a folder that a merge would refuse at its start or its end.

    Raises:
        OutputError: If it is an input, holds something else, or cannot be written.
    """
    with explain_write_errors(output):
        if plan is not None:
            refuse_input_as_output(plan.sources, output)
        if (output / MANIFEST_NAME).is_file():
            if is_whole(output):  # else it lost a file, and the merge will be made again
                _refuse_other_merge(recipe, read_manifest(output / MANIFEST_NAME), output)
        else:
            refuse_taken(output)
        place = next(path for path in output.absolute().parents if path.exists())
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{place} is a file")
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"the folder {place} is not yours to write in")


def check_url(recipe: MergeRecipe, url: str, staging: Path | None = None) -> None:
    """Refuse a place in an object store that a merge would refuse.

    Raises:
        OutputError: If it holds something else, or cannot be read.
    """
    manifest = find_result(local_copy(url, staging), url)
    if manifest is not None:
        _refuse_other_merge(recipe, manifest, url)


def refuse_input_as_output(checkpoints: Sequence[Checkpoint], output: Path) -> None:
    """A result may lie beside or below other files, but never in the place of an input.

    Raises:
        OutputError: With the input's name and folder.
    """
    place = output.resolve()
    for checkpoint in checkpoints:
        folder = checkpoint.folder.resolve()
        if place == folder or place in folder.parents:
            raise OutputError(
                f"{output} is, or holds, the input {checkpoint.name} ({checkpoint.folder}). "
                "Choose another folder for the result."
            )


def _refuse_other_merge(
    recipe: MergeRecipe, manifest: Mapping[str, Any], output: Path | str
) -> None:
    found = manifest.get("recipe")
    own = recipe.as_json()
    known = found if isinstance(found, dict) else {}
    different = [
        key
        for key in own | known
        if key not in PLACES and _placeless(own.get(key)) != _placeless(known.get(key))
    ]
    if different:
        raise OutputError(
            f"{output} holds another merge already (its recipe has another {', '.join(different)})."
            " Remove it or choose another folder."
        )


def _placeless(value: Any) -> Any:
    if isinstance(value, list):
        return [_placeless(item) for item in value]
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if key not in PLACES}
    return value


@dataclass(frozen=True)
class TensorGroup:
    """Tensors of like names that fare alike.

    Attributes:
        pattern: Their name with ``*`` for the numbers in it.
        fate: What becomes of them, in words.
        num_tensors: How many there are.
        num_elements: Their elements in the result; in an input, if they are left out.
    """

    pattern: str
    fate: str
    num_tensors: int
    num_elements: int


def tensor_groups(plan: MergePlan) -> list[TensorGroup]:
    """What becomes of every tensor of every input, in groups, in the result's order."""
    found: dict[tuple[str, str], list[int]] = {}
    for name, fate, num_elements in (*_kept(plan), *_left_out(plan)):
        found.setdefault((re.sub(r"\d+", "*", name), fate), []).append(num_elements)
    return [
        TensorGroup(pattern, fate, len(sizes), sum(sizes))
        for (pattern, fate), sizes in found.items()
    ]


def _kept(plan: MergePlan) -> Iterator[tuple[str, str, int]]:
    names = [model.name for model in plan.models]
    table = coefficients_from_headers(plan.recipe, names, plan.tensors)
    # Where a method adds to the base, models without any weight leave the base as it is.
    adds_to_base = METHODS[plan.recipe.method.name].for_options(plan.recipe.method).needs_base
    for tensor in plan.tensors:
        size = tensor.reference.num_elements
        if tensor.taken_from is not None:
            yield tensor.name, f"taken from {tensor.taken_from} (`modules`)", size
        elif not tensor.is_merged:
            yield tensor.name, "copied, if all models agree", size
        elif adds_to_base and not any(table.for_tensor(tensor.name)):
            yield tensor.name, "base's: no model has weight here", size
        else:
            yield tensor.name, _fate(tensor, names, plan), size


def _fate(tensor: AlignedTensor, names: Sequence[str], plan: MergePlan) -> str:
    base = tensor.base
    same = [base is not None and is_same_tensor(each, base) for each in tensor.finetuned]
    if all(same):
        return "base's: no model has another"
    words = ["merged"]
    if any(isinstance(each, RowMappedTensor) for each in tensor.inputs):
        words.append("rows matched by token")
        words += _filled(tensor.reference, plan)
    adapted = [n for n, each in zip(names, tensor.finetuned, strict=True) if _is_adapted(each)]
    if adapted:
        words.append(f"adapter applied for {', '.join(adapted)}")
    if any(same):
        alike = [name for name, is_base in zip(names, same, strict=True) if is_base]
        words.append(f"{', '.join(alike)} as the base")
    return "; ".join(words)


def _filled(tensor: TensorInfo, plan: MergePlan) -> Iterator[str]:
    """Which rows are those of tokens that no model has."""
    filled = plan.vocabulary.filled if plan.vocabulary else ()
    if not filled or not isinstance(tensor, RowMappedTensor) or not tensor.num_mean_rows:
        return
    tokens = [key for key in filled if isinstance(key, str)]
    listed = tokens[:MAX_LISTED_TOKENS]
    if others := len(filled) - len(listed):
        padding = others == len(filled) - len(tokens)
        listed.append(f"{others:,} {'rows of padding' if padding else 'more'}")
    whose = "the base's rows" if plan.base else "each model's rows"
    yield f"{', '.join(listed)}, which no model has: the mean of {whose}"


def _is_adapted(tensor: Any) -> bool:
    return isinstance(tensor, LoraTensor)


def _left_out(plan: MergePlan) -> Iterator[tuple[str, str, int]]:
    kept = {tensor.name for tensor in plan.tensors}
    sizes: dict[str, int] = {}
    owners: dict[str, list[str]] = {}
    for checkpoint in plan.inputs:
        for name, tensor in checkpoint.tensors.items():
            if name not in kept:
                sizes[name] = tensor.num_elements
                owners.setdefault(name, []).append(checkpoint.name)
    places = {place.name for place in plan.places}
    for name, size in sizes.items():
        if name in plan.taken.buffers:
            yield name, "left out: models make it themselves", size
            continue
        # Of a place all is left out that is not the module; of a module what its source lacks.
        by_module = name in plan.taken.modules or places.issuperset(owners[name])
        key = "modules" if by_module else "missing"
        yield name, f"left out (`{key}`): only in {', '.join(owners[name])}", size
