"""The coefficients of a recipe without its merge: only what they need is read."""

from __future__ import annotations

from nan_merge.coefficient_table import CoefficientTable
from nan_merge.coefficients import compute_coefficients
from nan_merge.measure import merged_groups, norms_for
from nan_merge.plan import MergePlan
from nan_merge.tasks import RunTasks, run_serially


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
    names = [tensor.name for group in merged_groups(plan) for tensor in group]
    norms = norms_for(plan, run_tasks, workers)
    elements = {t.name: t.reference.num_elements for t in plan.tensors if t.is_merged}
    return compute_coefficients(plan.recipe, names, norms, elements)
