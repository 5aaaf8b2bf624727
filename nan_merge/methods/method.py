"""What a merge method is: a pure function of corresponding pieces of tensors, and its needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from torch import Tensor

from nan_merge.schema import StrictModel
from nan_merge.tensor_options import OptionList, OptionValue, in_range_of, plain_number

Unit = Literal["element", "row", "matrix"]
Statistic = Literal["magnitude_threshold", "tensor_threshold", "majority_sign", "inner_products"]
Dialect = Literal["paper", "mergekit", "peft", "fusionbench"]
Share = Annotated[float, Field(gt=0, le=1)]
PerModelShare = Annotated[Share | OptionList, AfterValidator(in_range_of(Share))]


@dataclass(frozen=True)
class TensorNorms:
    """Inner products over one tensor (or several, summed) of T fine-tuned models.

    Attributes:
        weights: Of the models' weights, T x T; squared norms on the diagonal.
        task_vectors: Of the task vectors, T x T; empty if there is no base.
    """

    weights: tuple[tuple[float, ...], ...]
    task_vectors: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Context:
    """What a merge function is told beside the values of its piece.

    Attributes:
        tensor: Name of the tensor that the piece belongs to.
        shape: Shape of that whole tensor.
        start: Place of the piece's first element in the flattened tensor.
        seed: Of everything random; with model, tensor and place it decides every draw.
        models: Names of the T fine-tuned models.
        thresholds: Per model, the smallest task-vector magnitude that is kept; length T if the
            method needs one.
        majority_sign: -1.0 or 1.0, the sign that wins ties of a vote.
        norms: Inner products over this tensor, if the method needs them.
    """

    tensor: str = ""
    shape: tuple[int, ...] = ()
    start: int = 0
    seed: int = 0
    models: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    majority_sign: float = 1.0
    norms: TensorNorms | None = None


# (base or None, T fine-tuned, T coefficients, options, context) -> merged piece.
# All tensors are float32 and of one shape: flat for `unit: element`, (rows, columns) for `row`,
# the tensor's own for `matrix`. Inputs may be overwritten: the caller reads every piece afresh.
MergeFunction = Callable[[Tensor | None, Sequence[Tensor], Sequence[float], Any, Context], Tensor]


@dataclass(frozen=True)
class MergeMethod:
    """One row of the table of methods.

    Attributes:
        options: Schema of the recipe's `method` section; its `name` is the method's.
        merge: The pure function.
        paper: Where the method comes from.
        unit: The smallest piece that the function can be given: any elements, whole rows of the
            last axis, or a whole tensor.
        needs: The statistics that must be known first: one threshold over the whole model or
            one per tensor (for `options.density`), the majority of elected signs, inner products.
        needs_base: Whether the recipe must name a base model.
        weights_sum_to_one: Whether the coefficients are divided by their sum before the function
            sees them, which cancels any global scale.
        fewest_models: How many fine-tuned models there must be at least.
        most_models: How many there may be; None for any number.
        nan_refused: Why NAN's coefficients have no meaning for this method; empty if they have.
        varies: Options -> the fields of this row that they change; the row holds what the
            default options need.
    """

    options: type[StrictModel]
    merge: MergeFunction
    paper: str
    unit: Unit = "element"
    needs: tuple[Statistic, ...] = ()
    needs_base: bool = True
    weights_sum_to_one: bool = False
    fewest_models: int = 1
    most_models: int | None = None
    nan_refused: str = ""
    varies: Callable[[Any], Mapping[str, Any]] | None = None

    def for_options(self, options: StrictModel) -> MergeMethod:
        """This row as it stands for these options: a dialect may need other statistics."""
        return replace(self, **self.varies(options)) if self.varies else self


def task_vectors(base: Tensor | None, finetuned: Sequence[Tensor]) -> list[Tensor]:
    """Fine-tuned minus base, in place of the fine-tuned tensors."""
    assert base is not None, "a method whose `needs_base` is true is given a base"
    return [tensor.sub_(base) for tensor in finetuned]


def weighted_sum(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Sum of weight x tensor in the order given, in place of the tensors.

    Multiplied, then added: torch fuses `add(alpha=)` in some elements and not in others, and then
    the last bit would depend on where a piece begins.
    """
    total = tensors[0].mul_(weights[0])
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total.add_(tensor.mul_(weight))
    return total


def per_model(value: OptionValue, num_models: int) -> tuple[float, ...]:
    """One number per model from an option that may be a single number for all.

    Raises:
        ValueError: If there are several numbers, but not one per model, or if the option differs
            by tensor and was not resolved (`nan_merge.tensor_options`).
    """
    if not isinstance(value, tuple):
        return (value,) * num_models
    if len(value) != num_models:
        raise ValueError(f"{len(value)} numbers for {num_models} models; give one each")
    return tuple(plain_number(entry) for entry in value)
