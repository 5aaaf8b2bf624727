"""Preflight: from headers alone, decide whether checkpoints fit and what files the merge writes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nan_merge.checkpoint import OPEN_CLIP_WEIGHTS, Checkpoint, natural_key
from nan_merge.coefficients import check_num_layers
from nan_merge.config_place import check_place
from nan_merge.data_statistics import DataStatistics, statistics_of
from nan_merge.dtypes import BY_LABEL
from nan_merge.errors import IncompatibleError, OutputError, one_of_each_kind
from nan_merge.layout import AlignedTensor, ShardPlan, pack_shards
from nan_merge.lora import config_folder
from nan_merge.methods import METHODS
from nan_merge.missing import Missing, find_problems, missing_policy
from nan_merge.modules import Taken, as_language_model, take_modules
from nan_merge.problems import (
    Problems,
    as_one,
    attempt,
    coefficients_from_headers,
    match_recipe,
    open_each,
    open_place,
    without_vocabulary,
)
from nan_merge.publish import explain_write_errors, staging_path
from nan_merge.recipe import MergeRecipe
from nan_merge.result_config import check_config
from nan_merge.safetensors_file import TensorInfo
from nan_merge.tensor_options import options_by_tensor
from nan_merge.vocabulary import Vocabulary

MAX_LISTED_PROBLEMS = 20


@dataclass(frozen=True)
class MergePlan:
    """A recipe whose inputs were opened and fit each other.

    Attributes:
        recipe: What to merge and how.
        base: The base model, if there is one.
        models: The fine-tuned models, in the recipe's order.
        tensors: What the result holds.
        shards: The same, by file.
        vocabulary: The result's rows and tokenizer, if tokenizers were compared.
        statistics: What data said of each model, if the method reads it.
        taken: What is taken from one model instead of being merged.
        config: The folder that gives the result its config, if that is none of the models.
    """

    recipe: MergeRecipe
    base: Checkpoint | None
    models: tuple[Checkpoint, ...]
    tensors: tuple[AlignedTensor, ...]
    shards: tuple[ShardPlan, ...]
    vocabulary: Vocabulary | None = None
    statistics: tuple[DataStatistics, ...] = ()
    taken: Taken = field(default_factory=Taken)
    config: Checkpoint | None = None

    def data_statistics(self, names: Sequence[str]) -> dict[str, tuple[TensorInfo, ...]]:
        """Name -> where each model's statistics of that tensor lie, for those that have them."""
        tables = [each.checkpoint.tensors for each in self.statistics]
        known = [name for name in names if tables and name in tables[0]]
        return {name: tuple(table[name] for table in tables) for name in known}

    @property
    def places(self) -> tuple[Checkpoint, ...]:
        """Checkpoints that parts of the result are taken from and that are not merged."""
        return self.taken.places

    @property
    def inputs(self) -> tuple[Checkpoint, ...]:
        """All checkpoints that are read: the base, if there is one, the models, the places."""
        return (*([self.base] if self.base else []), *self.models, *self.places)

    @property
    def sources(self) -> tuple[Checkpoint, ...]:
        """All that the result has something from: the inputs, and the folder of its config."""
        return (*self.inputs, *([self.config] if self.config else []))

    @property
    def reference(self) -> Checkpoint:
        """The checkpoint whose config and tokenizer the result takes over."""
        return self.config or config_model(self.recipe, self.base, self.models)

    @property
    def side_folder(self) -> Path:
        """Where that config and tokenizer lie: for an adapter, beside its base."""
        return config_folder(self.reference)

    @property
    def output_bytes(self) -> int:
        """Bytes of tensor data that the result will hold."""
        return sum(shard.num_bytes for shard in self.shards)

    @property
    def input_bytes(self) -> int:
        """Bytes of tensor data that must be read once."""
        return sum(shard.input_bytes for shard in self.shards)


def plan_merge(recipe: MergeRecipe) -> MergePlan:
    """Open every checkpoint's headers and fit them together.

    Raises:
        NanMergeError: With every problem and its mend: a `CheckpointError` if all are about
            checkpoints that cannot be opened, an `IncompatibleError` if they do not fit, a
            `CoefficientError` if the recipe's coefficients would be refused whatever the norms.
    """
    plan, problems = find_plan(recipe)
    if plan is None or problems:
        raise as_one(problems)
    return plan


def find_plan(recipe: MergeRecipe) -> tuple[MergePlan | None, Problems]:
    """The plan, and everything that is wrong.

    Where something is wrong the plan is of what could be opened and fitted, good for its sizes
    alone; None if that is nothing.
    """
    problems: Problems = []
    base, models = open_each(recipe, problems)
    if not models:
        return None, problems
    place = open_place(recipe, problems)
    base, models = _of_one_family(base, models)
    missing, matched = recipe.missing, None
    lost_base = recipe.base is not None and base is None
    lost = {each.name for each in recipe.models} - {model.name for model in models}
    lost_place = place is None and not isinstance(recipe.config, str)
    if not lost_base and not lost_place and recipe.tokenizer not in lost:
        matched = match_recipe(recipe, base, models, place, problems)
    whole = matched is not None or (recipe.tokenizer is None and not lost_base)
    if matched is not None:
        base, models = matched.base, list(matched.models)
    elif not whole:
        base, models = base and without_vocabulary(base), list(map(without_vocabulary, models))
    if lost_base:
        missing = _without_base(missing)
    taken = None
    if not lost_base and not lost:
        taken = attempt(problems, take_modules, recipe, base, models, place is not None)
    tensors = attempt(problems, align, base, models, missing, taken)
    if not tensors:
        return None, problems
    attempt(problems, check_num_layers, recipe, [tensor.name for tensor in tensors])
    statistics = None
    if whole:
        attempt(problems, _check_config, recipe, base, models, place, taken, tensors)
        statistics = _check_whole(recipe, models, tensors, problems)
    plan = MergePlan(
        recipe,
        base,
        tuple(models),
        tensors,
        _pack(recipe, base or models[0], tensors),
        matched.vocabulary if matched else None,
        statistics or (),
        taken or Taken(),
        place,
    )
    return plan, problems


def _pack(
    recipe: MergeRecipe, reference: Checkpoint, tensors: tuple[AlignedTensor, ...]
) -> tuple[ShardPlan, ...]:
    dtype = BY_LABEL[recipe.dtype] if recipe.dtype else None
    if reference.is_open_clips:
        return (ShardPlan(OPEN_CLIP_WEIGHTS, tensors, dtype),)
    return tuple(pack_shards(tensors, dtype, recipe.shard_bytes))


def _check_config(
    recipe: MergeRecipe,
    base: Checkpoint | None,
    models: Sequence[Checkpoint],
    place: Checkpoint | None,
    taken: Taken | None,
    tensors: tuple[AlignedTensor, ...],
) -> None:
    """Refuse a config that the result does not fit, or that transformers cannot read."""
    if place is None:
        result = config_model(recipe, base, models)
        check_config(result, base or models[0], tensors)
    elif taken is not None:  # else what was to be taken would be said to be missing
        everyone = [*([base] if base else []), *models]
        check_place(place, everyone, taken.places, tensors)


def _check_whole(
    recipe: MergeRecipe,
    models: Sequence[Checkpoint],
    tensors: tuple[AlignedTensor, ...],
    problems: Problems,
) -> tuple[DataStatistics, ...] | None:
    """What can be said when all tensors are known; statistics, if the method reads any."""
    attempt(problems, _refuse_nothing_to_merge, tensors)
    names = [model.name for model in models]
    attempt(problems, coefficients_from_headers, recipe, names, tensors)
    merged = [tensor.name for tensor in tensors if tensor.is_merged]
    attempt(problems, options_by_tensor, recipe.method, merged, len(models))
    wanted = METHODS[recipe.method.name].reads
    if wanted is None:
        return None
    return attempt(problems, statistics_of, recipe, wanted, tensors)


def config_model(
    recipe: MergeRecipe, base: Checkpoint | None, models: Sequence[Checkpoint]
) -> Checkpoint:
    """The model whose config the result has."""
    by_name = {model.name: model for model in models}
    named = by_name.get(recipe.config) if isinstance(recipe.config, str) else None
    return named or base or models[0]


def _of_one_family(
    base: Checkpoint | None, models: Sequence[Checkpoint]
) -> tuple[Checkpoint | None, list[Checkpoint]]:
    """Language models of their own, by the names that they have in the reference."""
    whole = base or models[0]
    return base, [as_language_model(model, whole) for model in models]


def _without_base(missing: Missing) -> Missing:
    """What to check where the base cannot be opened: not what it alone could tell."""
    if isinstance(missing, dict):
        return {key: "drop" if value == "base" else value for key, value in missing.items()}
    return "drop" if missing == "base" else missing


def _refuse_nothing_to_merge(tensors: Sequence[AlignedTensor]) -> None:
    if not any(tensor.is_merged for tensor in tensors):
        raise IncompatibleError("The models hold no tensor of floating-point numbers to merge.")


def check_disk(results: Sequence[tuple[MergePlan, Path]]) -> None:
    """Refuse merges whose results cannot all fit on the disks of their folders.

    What an interrupted attempt has written already is not asked for again.

    Raises:
        OutputError: With the bytes needed and free.
    """
    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for plan, output in results:
        with explain_write_errors(output):  # a name that no file can have
            place = next(path for path in (output, *output.absolute().parents) if path.exists())
            written = [path.stat() for path in staging_path(output).glob("*.safetensors")]
        disk = place.stat().st_dev
        there = sum(status.st_blocks * 512 for status in written)
        needed[disk] = needed.get(disk, 0) + max(0, plan.output_bytes - there)
        places[disk] = place
    for disk, place in places.items():
        free = shutil.disk_usage(place).free
        if free < needed[disk]:
            raise OutputError(
                f"No space left on the disk of {place}: the merge needs {needed[disk]:,} bytes, "
                f"{free:,} are free. Free some space or write elsewhere."
            )


def align(
    base: Checkpoint | None,
    models: Sequence[Checkpoint],
    missing: Missing = "error",
    taken: Taken | None = None,
) -> tuple[AlignedTensor, ...]:
    """Pair the tensors of all inputs by name.

    Args:
        base: The base model, if there is one.
        models: The fine-tuned models.
        missing: What to do with a tensor that not all of them have; see `nan_merge.missing`.
        taken: What is taken from one of them, and not paired.

    Raises:
        IncompatibleError: If a tensor is missing somewhere, or has another shape or kind.
    """
    has_base, num_models = base is not None, len(models)
    taken = taken or Taken()
    if taken.modules or taken.buffers:
        base, models = base and _without(base, taken), [_without(each, taken) for each in models]
    reference = base or models[0]
    problems = list(find_problems(base, models, missing))
    aligned: list[AlignedTensor] = []
    for name, own in reference.tensors.items() if not problems else ():
        found = [model.tensors.get(name) for model in models]
        if None in found and missing_policy(missing, name) == "drop":
            continue
        # What a model lacks, under the policy `base`, it has as the base has it.
        finetuned = tuple(own if tensor is None else tensor for tensor in found)
        aligned.append(AlignedTensor(name, own if base else None, finetuned))
    for name, each in taken.tensors.items() if not problems else ():
        if name in taken.buffers:
            continue
        alone = each.tensor if has_base else None
        aligned.append(AlignedTensor(name, alone, (each.tensor,) * num_models, each.source))
    if taken.tensors:
        aligned.sort(key=lambda tensor: natural_key(tensor.name))
    if not aligned and not problems:
        problems = ["no tensor is in all of them"]
    if problems:
        raise IncompatibleError(
            f"The models do not fit each other {list_problems(problems)}\n"
            f"Merge only models that were fine-tuned from {reference.name} ({reference.folder}), "
            "or say with `missing: base` or `missing: drop` what becomes of tensors that not all "
            "of them have."
        )
    return tuple(aligned)


def _without(checkpoint: Checkpoint, taken: Taken) -> Checkpoint:
    gone = taken.modules.keys() | taken.buffers
    kept = {k: tensor for k, tensor in checkpoint.tensors.items() if k not in gone}
    return replace(checkpoint, tensors=kept)


def list_problems(problems: Sequence[str]) -> str:
    """Their number and a line each; lines that differ in numbers alone (of layers) are one."""
    lines = one_of_each_kind(problems)
    shown = lines[:MAX_LISTED_PROBLEMS]
    if len(lines) > len(shown):
        shown.append(f"... and {len(lines) - len(shown)} more")
    number = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
    return "\n".join([f"({number}):", *(f"  - {line}" for line in shown)])
