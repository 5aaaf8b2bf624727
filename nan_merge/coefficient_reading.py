"""The coefficients of a recipe without its merge: only what they need is read."""

from __future__ import annotations

from nan_merge.coefficient_table import CoefficientTable
from nan_merge.coefficients import compute_coefficients, needs_norms
from nan_merge.measure import merged_groups
from nan_merge.methods import TensorNorms
from nan_merge.plan import MergePlan
from nan_merge.statistics import measure_norms
from nan_merge.tasks import RunTasks, Task, run_serially


def measure_coefficients(
    plan: MergePlan, run_tasks: RunTasks = run_serially, workers: int = 1
) -> CoefficientTable:
    """The table that a merge of this plan would use, to the last bit.

    The models are read once if the coefficients are made from norms, else not at all. What the
    method itself needs (thresholds, signs) is left alone.

    Args:
        plan: What would be merged.
        run_tasks: Where the reading is done.
        workers: Processes of each task.

    Raises:
        CoefficientError: If a norm is zero.
        CheckpointError: If a tensor holds NaN or infinity.
    """
    groups = merged_groups(plan)
    norms: dict[str, TensorNorms] = {}
    if needs_norms(plan.recipe.coefficients):
        tasks = [
            Task("norms", measure_norms, (group, workers), sum(each.input_bytes for each in group))
            for group in groups
        ]
        for found in run_tasks(tasks):
            norms |= found
    elements = {tensor.name: tensor.reference.num_elements for group in groups for tensor in group}
    return compute_coefficients(plan.recipe, list(elements), norms, elements)
