"""Before a merge: gather the statistics that recipes over the same inputs need, once for all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nan_merge.coefficients import CoefficientTable, compute_coefficients, needs_norms
from nan_merge.methods import METHODS, ModelStatistics
from nan_merge.methods.ties import count_elected_signs
from nan_merge.plan import AlignedTensor, MergePlan
from nan_merge.recipe import MergeRecipe
from nan_merge.safetensors_file import BlockReader
from nan_merge.statistics import (
    FINE_BITS,
    TensorNorms,
    bits_to_float,
    coarse_histograms,
    find_rank,
    fine_histograms,
    measure_norms,
    one_thread,
    read_cells,
    sum_norms,
)
from nan_merge.tasks import RunTasks, Task


@dataclass(frozen=True)
class Measured:
    """Everything that a merge reads beside the checkpoints.

    Attributes:
        table: Its coefficients.
        statistics: Its thresholds and majority sign.
    """

    table: CoefficientTable
    statistics: ModelStatistics


def measure(plans: Sequence[MergePlan], run_tasks: RunTasks) -> list[Measured]:
    """Statistics and coefficients of recipes that merge the same checkpoints.

    Args:
        plans: Plans whose base and models are the same, in the same order.
        run_tasks: Where the reading is done.

    Raises:
        CoefficientError: If a norm is zero.
        CheckpointError: If a tensor holds NaN or infinity.
    """
    groups = _merged_groups(plans[0])
    norms: dict[str, TensorNorms] = {}
    if any(needs_norms(plan.recipe.coefficients) for plan in plans):
        for record in _over_groups("norms", measure_norms, groups, (), run_tasks):
            norms |= record
    thresholds = _magnitude_thresholds(plans, groups, run_tasks)
    names = [tensor.name for group in groups for tensor in group if tensor.is_merged]
    measured = [
        Measured(
            compute_coefficients(plan.recipe, names, norms),
            ModelStatistics(thresholds.get(_density(plan.recipe), ())),
        )
        for plan in plans
    ]
    return _with_majority_signs(plans, measured, groups, run_tasks)


def model_norms(plan: MergePlan, run_tasks: RunTasks) -> dict[str, dict[str, float]]:
    """Frobenius norms of the fine-tuned models: of their weights and of their task vectors.

    Returns:
        "weights" and, if there is a base, "task_vector" -> model's name -> norm.
    """
    records = _over_groups("norms", measure_norms, _merged_groups(plan), (), run_tasks)
    whole = sum_norms([norms for record in records for norms in record.values()])
    names = [model.name for model in plan.models]
    weights = [math.sqrt(square) for square in whole.weight_squares]
    vectors = [math.sqrt(row[place]) for place, row in enumerate(whole.gram)]
    found = {"weights": weights, "task_vector": vectors}
    return {target: dict(zip(names, row, strict=True)) for target, row in found.items() if row}


def _merged_groups(plan: MergePlan) -> list[tuple[AlignedTensor, ...]]:
    shards = [shard.tensors for shard in plan.shards]
    return [tensors for tensors in shards if any(tensor.is_merged for tensor in tensors)]


def _over_groups(
    label: str,
    function: Callable[..., Any],
    groups: Sequence[tuple[AlignedTensor, ...]],
    arguments: tuple[Any, ...],
    run_tasks: RunTasks,
) -> list[Any]:
    tasks = [
        Task(label, function, (group, *arguments), sum(tensor.input_bytes for tensor in group))
        for group in groups
    ]
    return run_tasks(tasks)


def _needs(recipe: MergeRecipe, statistic: str) -> bool:
    return statistic in METHODS[recipe.method.name].needs


def _density(recipe: MergeRecipe) -> float | None:
    return getattr(recipe.method, "density", None)


def _magnitude_thresholds(
    plans: Sequence[MergePlan], groups: Sequence[tuple[AlignedTensor, ...]], run_tasks: RunTasks
) -> dict[float | None, tuple[float, ...]]:
    """Density -> for each model, the exact magnitude from which elements are kept."""
    recipes = [plan.recipe for plan in plans if _needs(plan.recipe, "magnitude_threshold")]
    densities = sorted({density for recipe in recipes if (density := _density(recipe)) is not None})
    if not densities:
        return {}
    records = _over_groups("magnitudes", coarse_histograms, groups, (), run_tasks)
    coarse = np.sum(records, axis=0)
    # [model][density] -> (coarse bin, rank inside it)
    places = [
        [find_rank(row, threshold_rank(int(row.sum()), density)) for density in densities]
        for row in coarse
    ]
    bins = [[chosen for chosen, _ in row] for row in places]
    records = _over_groups("thresholds", fine_histograms, groups, (bins,), run_tasks)
    fine = np.sum(records, axis=0)
    return {
        density: tuple(
            _exact_threshold(fine[model, position], *row[position])
            for model, row in enumerate(places)
        )
        for position, density in enumerate(densities)
    }


def threshold_rank(num_elements: int, density: float) -> int:
    """Rank from below, from 1, of the smallest magnitude that is kept.

    TIES takes the (d - floor(d * density))-th smallest of d magnitudes and keeps all that are
    not below it (prateeky2806/ties-merging, src/ties_minimal.ipynb, topk_values_mask). A density
    of 1 keeps everything.
    """
    return max(1, num_elements - int(num_elements * density))


def _exact_threshold(fine: np.ndarray, coarse_bin: int, rank: int) -> float:
    fine_bin, _ = find_rank(fine, rank)
    return bits_to_float(coarse_bin << FINE_BITS | fine_bin)


def _with_majority_signs(
    plans: Sequence[MergePlan],
    measured: Sequence[Measured],
    groups: Sequence[tuple[AlignedTensor, ...]],
    run_tasks: RunTasks,
) -> list[Measured]:
    """Count elected signs of all recipes that need it in one reading."""
    needing = [
        place for place, plan in enumerate(plans) if _needs(plan.recipe, "majority_sign") and groups
    ]
    voters = [(plans[place].recipe, measured[place]) for place in needing]
    if not voters:
        return list(measured)
    records = _over_groups("signs", count_signs, groups, (voters,), run_tasks)
    totals = dict(zip(needing, np.sum(records, axis=0).tolist(), strict=True))
    return [
        Measured(
            item.table,
            ModelStatistics(
                item.statistics.magnitude_thresholds, -1.0 if totals.get(place, 0) < 0 else 1.0
            ),
        )
        for place, item in enumerate(measured)
    ]


def count_signs(
    tensors: Sequence[AlignedTensor], voters: Sequence[tuple[MergeRecipe, Measured]]
) -> list[int]:
    """Elected plus signs minus elected minus signs, for each of several recipes."""
    counts = [0] * len(voters)
    with BlockReader() as reader, one_thread():
        for tensor in tensors:
            for base, finetuned in read_cells(reader, tensor) if tensor.is_merged else ():
                assert base is not None
                for place, (recipe, measured) in enumerate(voters):
                    assert recipe.method.name == "ties"
                    coefficients = measured.table.for_tensor(tensor.name)
                    counts[place] += count_elected_signs(
                        base, finetuned, coefficients, recipe.method, measured.statistics
                    )
    return counts
