"""Models in the layout of the original LLaVA code, as checkpoints that backends can load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nan_merge.checkpoint import Checkpoint, open_checkpoint
from nan_merge.errors import CheckpointError, IncompatibleError
from nan_merge.hub import resolve_folder
from nan_merge.merge import merge_checkpoint
from nan_merge.missing import missing_policy
from nan_merge.model_reference import open_model
from nan_merge.modules import (
    family_of_checkpoint,
    is_buffer,
    lacking_modules,
    module_of,
    names_of_part,
)
from nan_merge.naming import is_original_llava, read_config
from nan_merge.recipe import ConfigPlace, MergeRecipe, ModelReference, ModulePlace

FOLDER = "hub-layout"
ASKED_WITHOUT = "asked without "


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
    config from such a folder. What the model has itself is its own, but for what
    `losses_of_copies` tells of.

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
    modules: dict[str, Any] = {}
    if base is not None:
        content |= {"base": base, "missing": "base"}
    if base is None or is_original_llava(read_config(resolve_folder(base))):
        placed = [each for each in like if isinstance(each.config, ConfigPlace)]
        if not placed:
            return folder
        content["config"] = placed[0].config
        modules = {p: s for p, s in placed[0].modules.items() if isinstance(s, ModulePlace)}
    content["modules"] = _own_or_placed(base, model, modules)
    return merge_checkpoint(MergeRecipe.model_validate(content), run_folder / FOLDER / name).output


def _own_or_placed(
    base: str | None, model: ModelReference, placed: Mapping[str, ModulePlace]
) -> dict[str, ModulePlace | str]:
    """Part -> the model, if it has the part itself, else the place that the merges take it from."""
    own = open_model(model.path, model.name)
    modules = {
        part: model.name if names_of_part(part, own.tensors, own) else place
        for part, place in placed.items()
    }
    if base is not None:
        only_own = lacking_modules(open_model(base, "base"), own)
        modules |= {module: model.name for module in only_own if module not in modules}
    return modules


def losses_of_copies(
    base: str, models: Sequence[ModelReference], merges: Sequence[MergeRecipe]
) -> dict[str, str]:
    """Tensors that models lose in the copies which `in_hub_layout` makes of them. Headers only.

    A LLaVA-1.6 in the original layout has an `image_newline`, for which the config of a base that
    is a LLaVA-1.5 has no use: the copy is asked as a LLaVA-1.5. That is done where a merge says so
    with `missing`, and told.

    Args:
        base: The run's base model.
        models: The fine-tuned models.
        merges: The run's merges.

    Returns:
        What the model is asked without, as a fact of the run -> names of models.

    Raises:
        IncompatibleError: If no merge says that a tensor is left out.
    """
    facts: dict[str, list[str]] = {}
    originals = list(_originals(models))
    if not originals:
        return {}
    reference = open_model(base, "base")
    for own in originals:
        for name in _lost(own, reference):
            if all(missing_policy(merge.missing, name) == "error" for merge in merges):
                raise IncompatibleError(
                    f"{own.name} ({own.folder}) is in the format of the original LLaVA code, and "
                    f"has {name}, which the base ({reference.folder}) lacks. The copy of it that "
                    "is asked would have the base's config, and be without, as if a LLaVA-1.6 were "
                    f"a LLaVA-1.5. Name {own.name} in the hub's layout, with a config of its own "
                    "(llava-hf on the hub has such copies of LLaVA's own models), or say in a "
                    f"merge that it is left out: `missing: {{{name}: base}}`."
                )
            facts.setdefault(f"{ASKED_WITHOUT}{name}", []).append(own.name)
    return {fact: ", ".join(names) for fact, names in facts.items()}


def _originals(models: Sequence[ModelReference]) -> Iterator[Checkpoint]:
    for model in models:
        try:
            own = open_checkpoint(model.path, model.name)
        except CheckpointError:
            continue  # the merges tell of it, and of all else that is wrong
        if is_original_llava(read_config(own.folder)):
            yield own


def loss_notes(losses: Mapping[str, str]) -> Iterator[str]:
    """The same, for whoever reads the run's output."""
    for fact, names in losses.items():
        yield (
            f"note: {names}: {fact}, which the base lacks, as `missing` has it. What is asked is a "
            "copy with the base's config; a model in the hub's layout is asked as it is."
        )


def _lost(own: Checkpoint, reference: Checkpoint) -> list[str]:
    """Names of tensors that a copy of a model leaves out, since the base has none of the name."""
    return [
        name
        for name in own.tensors
        if name not in reference.tensors
        and not is_buffer(name)
        and module_of(name, family_of_checkpoint(own)) not in lacking_modules(reference, own)
    ]
