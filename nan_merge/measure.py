"""Before a merge: gather the statistics that recipes over the same inputs need, once for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nan_merge.coefficients import compute_coefficients
from nan_merge.compiled_merge import count_signs
from nan_merge.inner_products import ALL_PRODUCTS, NO_PRODUCTS, WantedProducts, measure_norms
from nan_merge.kept_sums import Drop, measure_kept_sums
from nan_merge.measured import Measured, needs
from nan_merge.methods import TensorNorms
from nan_merge.methods.dare import rescale_of
from nan_merge.methods.method import Dialect, Statistic, per_model
from nan_merge.norms import sum_norms
from nan_merge.plan import AlignedTensor, MergePlan
from nan_merge.recipe import CoefficientSpec, MergeRecipe
from nan_merge.shares import SHARES
from nan_merge.statistics import Trim, count_magnitudes, select_thresholds, tensor_thresholds
from nan_merge.tasks import RunTasks, Task

Groups = Sequence[tuple[AlignedTensor, ...]]


def measure(plans: Sequence[MergePlan], run_tasks: RunTasks, workers: int = 1) -> list[Measured]:
    """Statistics and coefficients of recipes that merge the same checkpoints.

    Args:
        plans: Plans whose base and models are the same, in the same order.
        run_tasks: Where the reading is done.
        workers: Processes of each task.

    Raises:
        CoefficientError: If a norm is zero.
        CheckpointError: If a tensor holds NaN or infinity.
    """
    groups = merged_groups(plans[0])
    norms = _norms(plans, groups, run_tasks, workers)
    whole = _whole_model_thresholds(plans, groups, run_tasks, workers)
    by_tensor = _tensor_thresholds(plans, groups, run_tasks, workers)
    rescales = _kept_sums(plans, groups, run_tasks, workers)
    elements = {tensor.name: tensor.reference.num_elements for group in groups for tensor in group}
    measured: list[Measured] = []
    for plan in plans:
        recipe = plan.recipe
        trim = _trim(recipe)
        measured.append(
            Measured(
                compute_coefficients(recipe, list(elements), norms, elements),
                thresholds=whole.get(trim, ()) if needs(recipe, "magnitude_threshold") else (),
                tensor_thresholds=(by_tensor[trim] if needs(recipe, "tensor_threshold") else {}),
                norms=norms if needs(recipe, "inner_products") else {},
                rescales=rescales[drop_of(recipe)] if needs(recipe, "kept_sums") else {},
            )
        )
    return _with_majority_signs(plans, measured, groups, run_tasks, workers)


def _trim(recipe: MergeRecipe) -> Trim:
    dialect: Dialect = getattr(recipe.method, "dialect", "paper")
    return dialect, _densities(recipe)


def _densities(recipe: MergeRecipe) -> tuple[float, ...]:
    return per_model(getattr(recipe.method, "density", 1.0), len(recipe.models))


def merged_groups(plan: MergePlan) -> list[tuple[AlignedTensor, ...]]:
    """The tensors that are merged, grouped as they lie in files; a group is one task."""
    shards = [
        tuple(tensor for tensor in shard.tensors if tensor.is_merged) for shard in plan.shards
    ]
    return [tensors for tensors in shards if tensors]


def _over_groups(
    label: str,
    function: Callable[..., Any],
    groups: Groups,
    arguments: tuple[Any, ...],
    run_tasks: RunTasks,
) -> list[Any]:
    tasks = [
        Task(label, function, (group, *arguments), sum(tensor.input_bytes for tensor in group))
        for group in groups
    ]
    return run_tasks(tasks)


def model_norms(plan: MergePlan, run_tasks: RunTasks) -> dict[str, dict[str, float]]:
    """Frobenius norms of the fine-tuned models: of their weights and of their task vectors.

    Returns:
        "weights" and, if there is a base, "task_vector" -> model's name -> norm.
    """
    wanted = WantedProducts(all_pairs=False)
    records = _over_groups("norms", measure_norms, merged_groups(plan), (wanted, 1), run_tasks)
    whole = sum_norms([norms for record in records for norms in record.values()])
    names = [model.name for model in plan.models]
    found = {"weights": whole.weights, "task_vector": whole.task_vectors}
    return {
        target: {name: math.sqrt(row[i]) for i, (name, row) in enumerate(zip(names, gram))}  # noqa: B905
        for target, gram in found.items()
        if gram
    }


def _norms(
    plans: Sequence[MergePlan], groups: Groups, run_tasks: RunTasks, workers: int
) -> dict[str, TensorNorms]:
    wanted = NO_PRODUCTS
    for plan in plans:
        wanted |= wanted_products(plan.recipe.coefficients)
        if needs(plan.recipe, "inner_products"):
            wanted |= ALL_PRODUCTS
    found: dict[str, TensorNorms] = {}
    if wanted != NO_PRODUCTS:
        for record in _over_groups("norms", measure_norms, groups, (wanted, workers), run_tasks):
            found |= record
    return found


def wanted_products(spec: CoefficientSpec) -> WantedProducts:
    """What these coefficients are made from."""
    takes_norms = spec.source in ("matched", *SHARES)
    return WantedProducts(
        weights=takes_norms and spec.norm_target == "weights",
        task_vectors=spec.scale == "norm" or (takes_norms and spec.norm_target == "task_vector"),
        all_pairs=spec.scale == "norm",
    )


def _kept_sums(
    plans: Sequence[MergePlan], groups: Groups, run_tasks: RunTasks, workers: int
) -> dict[Drop, dict[str, tuple[float, ...]]]:
    """Drop -> tensor's name -> for each model, the factor that keeps the sum of magnitudes."""
    recipes = [plan.recipe for plan in plans if needs(plan.recipe, "kept_sums")]
    drops = list(dict.fromkeys(map(drop_of, recipes)))
    found: dict[Drop, dict[str, tuple[float, ...]]] = {drop: {} for drop in drops}
    if not drops:
        return found
    arguments = (drops, workers)
    for record in _over_groups("kept sums", measure_kept_sums, groups, arguments, run_tasks):
        for name, rows in record.items():
            for drop, row in zip(drops, rows, strict=True):
                found[drop][name] = tuple(rescale_of(before, after) for before, after in row)
    return found


def drop_of(recipe: MergeRecipe) -> Drop:
    """How the recipe drops elements."""
    models = tuple(model.name for model in recipe.models)
    return Drop(recipe.seed, models, _densities(recipe))


def _trims(plans: Sequence[MergePlan], statistic: Statistic) -> list[Trim]:
    recipes = [plan.recipe for plan in plans]
    return sorted({_trim(recipe) for recipe in recipes if needs(recipe, statistic)})


def _whole_model_thresholds(
    plans: Sequence[MergePlan], groups: Groups, run_tasks: RunTasks, workers: int
) -> dict[Trim, tuple[float, ...]]:
    """Trim -> for each model, the exact magnitude from which elements are kept."""
    trims = _trims(plans, "magnitude_threshold")
    if not trims:
        return {}

    def count(bins: list[list[int]] | None) -> np.ndarray:
        label = "magnitudes" if bins is None else "thresholds"
        arguments = (bins, workers)
        return np.sum(_over_groups(label, count_magnitudes, groups, arguments, run_tasks), axis=0)

    return dict(zip(trims, select_thresholds(trims, count), strict=True))


def _tensor_thresholds(
    plans: Sequence[MergePlan], groups: Groups, run_tasks: RunTasks, workers: int
) -> dict[Trim, dict[str, tuple[float, ...]]]:
    """Trim -> tensor's name -> for each model, the threshold inside that tensor."""
    trims = _trims(plans, "tensor_threshold")
    found: dict[Trim, dict[str, tuple[float, ...]]] = {trim: {} for trim in trims}
    if not trims:
        return found
    arguments = (trims, workers)
    for record in _over_groups("thresholds", tensor_thresholds, groups, arguments, run_tasks):
        for name, rows in record.items():
            for trim, row in zip(trims, rows, strict=True):
                found[trim][name] = row
    return found


def _with_majority_signs(
    plans: Sequence[MergePlan],
    measured: Sequence[Measured],
    groups: Groups,
    run_tasks: RunTasks,
    workers: int,
) -> list[Measured]:
    """Count elected signs of all recipes that need it in one reading."""
    needing = [i for i, plan in enumerate(plans) if needs(plan.recipe, "majority_sign") and groups]
    voters = [(plans[place].recipe, measured[place]) for place in needing]
    if not voters:
        return list(measured)
    records = _over_groups("signs", count_signs, groups, (voters, workers), run_tasks)
    totals = dict(zip(needing, np.sum(records, axis=0).tolist(), strict=True))
    return [
        replace(item, majority_sign=-1.0 if totals.get(place, 1) <= 0 else 1.0)
        for place, item in enumerate(measured)
    ]
