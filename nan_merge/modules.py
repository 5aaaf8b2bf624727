"""Parts of models that are taken from one place instead of being merged: `modules:` of a recipe.

A part is a module of a vision-language model (`nan_merge.naming`), or a pattern of tensor names.
What is taken is copied as it is; every tensor that no part takes is merged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from nan_merge.checkpoint import Checkpoint
from nan_merge.errors import IncompatibleError
from nan_merge.lora import config_folder
from nan_merge.model_reference import open_model
from nan_merge.naming import (
    MODULES,
    Family,
    family_of,
    is_original_llava,
    read_config,
    rename,
    tower_names,
)
from nan_merge.recipe import MERGED, MergeRecipe, ModulePlace
from nan_merge.safetensors_file import TensorInfo

# Buffers that old checkpoints hold and models make themselves.
_POSITIONS = "*position_ids"
_BUFFERS = (_POSITIONS, "*rotary_emb.inv_freq")


@dataclass(frozen=True)
class TakenTensor:
    """One tensor that the result has from one model.

    Attributes:
        module: The part of the recipe that takes it.
        source: From whom: "base", a model's name, or the name of a place.
        tensor: Where it lies.
    """

    module: str
    source: str
    tensor: TensorInfo


@dataclass(frozen=True)
class Taken:
    """What is not merged.

    Attributes:
        tensors: Name -> what is taken under it.
        modules: Names of all tensors of parts that are taken, also of those that are left out
            because the model that has the part has no such tensor.
        places: Checkpoints that hold parts and are not merged.
        buffers: Names of tensors that models make themselves, where they are left out.
    """

    tensors: Mapping[str, TakenTensor] = field(default_factory=dict[str, TakenTensor])
    modules: Mapping[str, str] = field(default_factory=dict[str, str])
    places: tuple[Checkpoint, ...] = ()
    buffers: frozenset[str] = frozenset()


def family_of_checkpoint(checkpoint: Checkpoint) -> Family | None:
    """Its family of vision-language models; None of any other model."""
    return family_of(read_config(config_folder(checkpoint)))


def as_language_model(checkpoint: Checkpoint, whole: Checkpoint) -> Checkpoint:
    """A language model of its own under the names that it has inside a vision-language model.

    Args:
        checkpoint: Any model.
        whole: The model that it is merged into.

    Returns:
        The same checkpoint if it needs no other names.
    """
    family = family_of_checkpoint(whole)
    if family is None or family_of_checkpoint(checkpoint) is not None:
        return checkpoint
    names = {
        name: name if name in whole.tensors else rename(name, family.text_renamings)
        for name in checkpoint.tensors
    }
    if len(set(names.values())) < len(names) or all(name == new for name, new in names.items()):
        return checkpoint
    tensors = {names[name]: tensor for name, tensor in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors)


def take_modules(
    recipe: MergeRecipe,
    base: Checkpoint | None,
    models: Sequence[Checkpoint],
    without_buffers: bool = False,
) -> Taken:
    """What the recipe's `modules` take, and from where. Headers only.

    Args:
        recipe: The merge.
        base: The base model, if there is one.
        models: The fine-tuned models.
        without_buffers: Whether the result is to have no tensors that models make themselves.

    Raises:
        IncompatibleError: If a part fits no tensor, or its source has none of it.
        CheckpointError: If a place cannot be opened.
    """
    if not recipe.modules and not without_buffers:
        return Taken()
    reference = base or models[0]
    by_name = {"base": base, **{model.name: model for model in models}}
    family = family_of_checkpoint(reference)
    places: list[Checkpoint] = []
    sources: dict[str, Checkpoint | None] = {}
    for module, source in recipe.modules.items():
        if isinstance(source, ModulePlace):
            places.append(_open_place(module, source.path))
            sources[module] = places[-1]
        else:
            sources[module] = None if source == MERGED else by_name[source]
    everyone = [*([base] if base else []), *models, *places]
    names = dict.fromkeys(name for each in everyone for name in each.tensors)
    modules = {name: part for name in names if (part := _part_of(name, sources, family))}
    problems = list(_problems(modules, sources))
    if problems:
        raise IncompatibleError("\n".join(problems))
    taken: dict[str, TakenTensor] = {}
    kept: dict[str, str] = {}
    for name, module in modules.items():
        if (source := sources[module]) is None:
            continue
        kept[name] = module
        if name in source.tensors and not _is_stray_buffer(name, source, reference):
            label = "base" if source is base else source.name
            taken[name] = TakenTensor(module, label, source.tensors[name])
    buffers = filter(is_buffer, names) if without_buffers else ()
    return Taken(taken, kept, tuple(places), frozenset(buffers))


def module_of(name: str, family: Family | None) -> str | None:
    """The module of a family that a tensor belongs to; None if it belongs to none."""
    for module, patterns in family.modules.items() if family is not None else ():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return module
    return None


def lacking_modules(model: Checkpoint, reference: Checkpoint) -> tuple[str, ...]:
    """Modules of a vision-language model of which a model has nothing.

    Such a model is a language model of its own, or a checkpoint of the original LLaVA, which leaves
    out the vision tower that it did not train.
    """
    family = family_of_checkpoint(reference)
    wanted, found = (
        {module_of(name, family) for name in each.tensors} for each in (reference, model)
    )
    return tuple(module for module in MODULES if module in wanted and module not in found)


def names_of_part(part: str, names: Iterable[str], whole: Checkpoint) -> list[str]:
    """Those of some tensors that a part of a recipe takes, in a model of the family of `whole`."""
    family = family_of_checkpoint(whole)
    return [name for name in names if _part_of(name, [part], family) is not None]


def is_buffer(name: str) -> bool:
    """Whether a tensor is one that old checkpoints hold and models make themselves."""
    return any(fnmatchcase(name, pattern) for pattern in _BUFFERS)


def explain_lacking(model: Checkpoint, modules: Sequence[str], owner: str | None = None) -> str:
    """That a model has nothing of some modules, and what can be done.

    Args:
        model: The model.
        modules: What it lacks.
        owner: Name of the model that has them; None if it is the base.
    """
    config = read_config(config_folder(model))
    tower = config.get("mm_vision_tower")
    named = f" (its config names {tower})" if tower and is_original_llava(config) else ""
    wish = ", ".join(f"{module}: {owner or 'base'}" for module in modules)
    other = (
        ", or let this model count as not having changed the base's with `missing: base`"
        if owner is None
        else ""
    )
    return (
        f"{model.name} ({model.folder}) has no {' and no '.join(modules)}{named}. Say whose the "
        f"result shall have, e.g. `modules: {{{wish}}}`{other}"
    )


def _part_of(name: str, parts: Iterable[str], family: Family | None) -> str | None:
    """The first part of a recipe that a tensor fits."""
    module = module_of(name, family)
    known = family.modules if family is not None else {}
    for part in parts:
        if module == part if part in known else fnmatchcase(name, part):
            return part
    return None


def _problems(
    modules: Mapping[str, str], sources: Mapping[str, Checkpoint | None]
) -> Iterator[str]:
    for part, source in sources.items():
        fitting = [name for name, found in modules.items() if found == part]
        if not fitting:
            yield (
                f"`modules`: {part} fits no tensor of any model. Parts of vision-language models "
                f"are {', '.join(MODULES)}; anything else is a pattern of tensor names"
            )
        elif source is not None and not any(name in source.tensors for name in fitting):
            yield f"`modules`: {source.name} ({source.folder}) has no tensor of {part}"


def _open_place(module: str, path: str) -> Checkpoint:
    """A checkpoint that a part is taken from; a vision model of its own is taken for a tower."""
    checkpoint = open_model(path, path)
    if family_of_checkpoint(checkpoint) is not None or module != "vision_tower":
        return checkpoint
    names = tower_names(list(checkpoint.tensors))
    tensors = {names[name]: tensor for name, tensor in checkpoint.tensors.items()}
    return replace(checkpoint, tensors=tensors)


def _is_stray_buffer(name: str, source: Checkpoint, reference: Checkpoint) -> bool:
    return (
        fnmatchcase(name, _POSITIONS)
        and name not in reference.tensors
        and not source.tensors[name].dtype.is_floating_point
    )
