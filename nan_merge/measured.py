"""What a merge reads beside the checkpoints, and what a method is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nan_merge.coefficient_table import CoefficientTable
from nan_merge.layout import AlignedTensor
from nan_merge.methods import METHODS, Context, MergeMethod, TensorNorms
from nan_merge.methods.method import Statistic
from nan_merge.recipe import MergeRecipe
from nan_merge.safetensors_file import TensorInfo


@dataclass(frozen=True)
class Measured:
    """Everything that a merge reads beside the checkpoints.

    Attributes:
        table: Its coefficients.
        thresholds: T magnitudes from which elements are kept, over the whole model.
        tensor_thresholds: The same for each tensor, where the method trims tensor by tensor.
        majority_sign: The sign that wins ties of the vote.
        norms: Inner products of each tensor, where the method needs them.
        rescales: For each tensor, T factors on what is kept after dropping at random, where the
            method needs them.
        options: The method's options in each tensor, where they differ.
        statistics: Where, for each tensor, T statistics made from data lie; those without are
            averaged.
        inputs_first: Names of weights whose first axis meets the inputs.
    """

    table: CoefficientTable
    thresholds: tuple[float, ...] = ()
    tensor_thresholds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    majority_sign: float = 1.0
    norms: Mapping[str, TensorNorms] = field(default_factory=dict)
    rescales: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    statistics: Mapping[str, tuple[TensorInfo, ...]] = field(default_factory=dict)
    inputs_first: frozenset[str] = frozenset()

    def options_of(self, tensor_name: str, method: Any) -> Any:
        """The method's options in one tensor, as plain numbers."""
        return self.options.get(tensor_name, method)

    def thresholds_of(self, tensor_name: str) -> tuple[float, ...]:
        """The T thresholds that hold in one tensor."""
        return self.tensor_thresholds.get(tensor_name, self.thresholds)


def method_of(recipe: MergeRecipe) -> MergeMethod:
    """The row of the table of methods, as it stands for the recipe's options."""
    return METHODS[recipe.method.name].for_options(recipe.method)


def is_compiled(recipe: MergeRecipe) -> bool:
    """Whether the compiled kernel can do the recipe's merge."""
    return method_of(recipe).program is not None


def needs(recipe: MergeRecipe, statistic: Statistic) -> bool:
    """Whether the recipe's method wants a statistic."""
    return statistic in method_of(recipe).needs


def context_of(recipe: MergeRecipe, measured: Measured, tensor: AlignedTensor) -> Context:
    """What the method is told about a tensor, from its first element on."""
    return Context(
        tensor=tensor.name,
        shape=tensor.reference.shape,
        seed=recipe.seed,
        models=measured.table.models,
        thresholds=measured.thresholds_of(tensor.name),
        majority_sign=measured.majority_sign,
        norms=measured.norms.get(tensor.name),
        rescales=measured.rescales.get(tensor.name, ()),
        inputs_first=tensor.name in measured.inputs_first,
    )
