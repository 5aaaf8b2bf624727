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
from nan_merge.layout import AlignedTensor
from nan_merge.measured import Measured, needs
from nan_merge.methods import TensorNorms
from nan_merge.methods.dare import rescale_of
from nan_merge.methods.method import Dialect, per_model
from nan_merge.norms import sum_norms
from nan_merge.plan import MergePlan
from nan_merge.recipe import CoefficientSpec, MergeRecipe
from nan_merge.shares import SHARES
from nan_merge.statistics import Trim, count_magnitudes, select_thresholds, tensor_thresholds
from nan_merge.tasks import RunTasks, Task
from nan_merge.tensor_options import options_by_tensor

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
    wanted = all_wanted_products([plan.recipe for plan in plans])
    norms = _norms(wanted, groups, run_tasks, workers)
    whole = _whole_model_thresholds(plans, groups, run_tasks, workers)
    by_tensor = _tensor_thresholds(plans, groups, run_tasks, workers)
    rescales = _kept_sums(plans, groups, run_tasks, workers)
    elements = {tensor.name: tensor.reference.num_elements for group in groups for tensor in group}
    measured: list[Measured] = []
    for plan in plans:
        recipe = plan.recipe
        measured.append(
            Measured(
                compute_coefficients(recipe, list(elements), norms, elements),
                thresholds=whole[_trim(recipe)] if needs(recipe, "magnitude_threshold") else (),
                tensor_thresholds=by_tensor.get(_kept(recipe), {}),
                norms=norms if needs(recipe, "inner_products") else {},
                rescales=rescales.get(_drawn(recipe), {}),
                options=options_by_tensor(recipe.method, elements, len(recipe.models)),
                statistics=plan.data_statistics(list(elements)),
                inputs_first=plan.statistics[0].inputs_first if plan.statistics else frozenset(),
            )
        )
    return _with_majority_signs(plans, measured, groups, run_tasks, workers)


def _kept(recipe: MergeRecipe, options: Any = None) -> tuple[Dialect, Any]:
    """Dialect and density as the recipe says them, or as the options of one tensor do."""
    method = options or recipe.method
    return getattr(method, "dialect", "paper"), getattr(method, "density", 1.0)


def _trim(recipe: MergeRecipe, options: Any = None) -> Trim:
    """What is kept of each model, everywhere or by the options of one tensor."""
    dialect, density = _kept(recipe, options)
    return dialect, per_model(density, len(recipe.models))


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


def norms_for(plan: MergePlan, run_tasks: RunTasks, workers: int = 1) -> dict[str, TensorNorms]:
    """What the coefficients of one recipe are made from; empty if they take no norms."""
    wanted = wanted_products(plan.recipe.coefficients)
    return _norms(wanted, merged_groups(plan), run_tasks, workers)


def _norms(
    wanted: WantedProducts, groups: Groups, run_tasks: RunTasks, workers: int
) -> dict[str, TensorNorms]:
    found: dict[str, TensorNorms] = {}
    if wanted != NO_PRODUCTS:
        for record in _over_groups("norms", measure_norms, groups, (wanted, workers), run_tasks):
            found |= record
    return found


def all_wanted_products(recipes: Sequence[MergeRecipe]) -> WantedProducts:
    """What the coefficients and the methods of some recipes are made from."""
    wanted = NO_PRODUCTS
    for recipe in recipes:
        wanted |= wanted_products(recipe.coefficients)
        if needs(recipe, "inner_products"):
            wanted |= ALL_PRODUCTS
    return wanted


def wanted_products(spec: CoefficientSpec) -> WantedProducts:
    """What these coefficients are made from."""
    takes_norms = spec.source in ("matched", *SHARES)
    return WantedProducts(
        weights=takes_norms and spec.target == "weights",
        task_vectors=spec.scale == "norm" or (takes_norms and spec.target == "task_vector"),
        all_pairs=spec.scale == "norm",
    )


def _kept_sums(
    plans: Sequence[MergePlan], groups: Groups, run_tasks: RunTasks, workers: int
) -> dict[Any, dict[str, tuple[float, ...]]]:
    """What `_drawn` gives -> tensor's name -> for each model, what keeps its sum of magnitudes."""
    recipes = {_drawn(p.recipe): p.recipe for p in plans if needs(p.recipe, "kept_sums")}
    found: dict[Any, dict[str, tuple[float, ...]]] = {drawn: {} for drawn in recipes}
    if not recipes:
        return found
    names = [tensor.name for group in groups for tensor in group]
    drops: dict[str, list[Drop]] = {name: [] for name in names}
    for recipe in recipes.values():
        options = options_by_tensor(recipe.method, names, len(recipe.models))
        models = tuple(model.name for model in recipe.models)
        for name in names:
            _, densities = _trim(recipe, options.get(name))
            drops[name].append(Drop(recipe.seed, models, densities))
    arguments = (drops, workers)
    for record in _over_groups("kept sums", measure_kept_sums, groups, arguments, run_tasks):
        for name, rows in record.items():
            for drawn, row in zip(recipes, rows, strict=True):
                found[drawn][name] = tuple(rescale_of(before, after) for before, after in row)
    return found


def _drawn(recipe: MergeRecipe) -> tuple[Any, ...]:
    """All that decides which elements are dropped."""
    return (recipe.seed, *(model.name for model in recipe.models), *_kept(recipe))


def _whole_model_thresholds(
    plans: Sequence[MergePlan], groups: Groups, run_tasks: RunTasks, workers: int
) -> dict[Trim, tuple[float, ...]]:
    """Trim -> for each model, the exact magnitude from which elements are kept."""
    trims = sorted({_trim(p.recipe) for p in plans if needs(p.recipe, "magnitude_threshold")})
    if not trims:
        return {}

    def count(bins: list[list[int]] | None) -> np.ndarray:
        label = "magnitudes" if bins is None else "thresholds"
        arguments = (bins, workers)
        return np.sum(_over_groups(label, count_magnitudes, groups, arguments, run_tasks), axis=0)

    return dict(zip(trims, select_thresholds(trims, count), strict=True))


def _tensor_thresholds(
    plans: Sequence[MergePlan], groups: Groups, run_tasks: RunTasks, workers: int
) -> dict[Any, dict[str, tuple[float, ...]]]:
    """What `_kept` gives -> tensor's name -> for each model, the threshold inside that tensor."""
    recipes = {_kept(p.recipe): p.recipe for p in plans if needs(p.recipe, "tensor_threshold")}
    found: dict[Any, dict[str, tuple[float, ...]]] = {kept: {} for kept in recipes}
    if not recipes:
        return found
    names = [tensor.name for group in groups for tensor in group]
    trims: dict[str, list[Trim]] = {name: [] for name in names}
    for recipe in recipes.values():
        options = options_by_tensor(recipe.method, names, len(recipe.models))
        for name in names:
            trims[name].append(_trim(recipe, options.get(name)))
    arguments = (trims, workers)
    for record in _over_groups("thresholds", tensor_thresholds, groups, arguments, run_tasks):
        for name, rows in record.items():
            for kept, row in zip(recipes, rows, strict=True):
                found[kept][name] = row
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
