"""The table of merge methods. To add one: a file beside this, a row here, a test."""

from typing import Annotated

from pydantic import Field

from nan_merge.methods.average import AverageOptions, average
from nan_merge.methods.method import MergeMethod, ModelStatistics
from nan_merge.methods.task_arithmetic import TaskArithmeticOptions, task_arithmetic
from nan_merge.methods.ties import TiesOptions, ties

METHODS: dict[str, MergeMethod] = {
    "average": MergeMethod(
        AverageOptions, average, paper="arXiv:2203.05482", needs_base=False, weights_sum_to_one=True
    ),
    "task_arithmetic": MergeMethod(
        TaskArithmeticOptions, task_arithmetic, paper="arXiv:2212.04089"
    ),
    "ties": MergeMethod(
        TiesOptions, ties, paper="arXiv:2306.01708", needs=("magnitude_threshold", "majority_sign")
    ),
}

MethodOptions = Annotated[
    AverageOptions | TaskArithmeticOptions | TiesOptions, Field(discriminator="name")
]

__all__ = ["METHODS", "MergeMethod", "MethodOptions", "ModelStatistics"]
