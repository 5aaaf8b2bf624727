"""What a merge method is: a pure function of corresponding pieces of tensors, and its needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from nan_merge.errors import CoefficientError
from nan_merge.schema import StrictModel
from nan_merge.tensor_options import OptionList, OptionValue, in_range_of, plain_number

if TYPE_CHECKING:
    from torch import Tensor

    # (base or None, T fine-tuned, T coefficients, options, context) -> merged piece.
    # All tensors are float32 and of one shape: flat for `unit: element`, (rows, columns) for
    # `row`, the tensor's own for `matrix`. Inputs may be overwritten: the caller reads every
    # piece afresh.
    MergeFunction = Callable[
        [Tensor | None, Sequence[Tensor], Sequence[float], Any, "Context"], Tensor
    ]

Unit = Literal["element", "row", "matrix"]
Statistic = Literal[
    "magnitude_threshold", "tensor_threshold", "majority_sign", "inner_products", "kept_sums"
]
DataStatistic = Literal["gram", "fisher"]
Dialect = Literal["paper", "mergekit", "peft", "fusionbench"]
Share = Annotated[float, Field(gt=0, le=1)]
COPIES = 10
PerModelShare = Annotated[Share | OptionList, AfterValidator(in_range_of(Share))]


def _report_nothing(repair: str, number: float) -> None:
    pass


@dataclass(frozen=True)
class TensorNorms:
    """Inner products over one tensor (or several, summed) of T fine-tuned models.

    Attributes:
        weights: Of the models' weights, T x T; squared norms on the diagonal; empty if they were
            not asked for. What was not asked for beside the diagonal is NaN.
        task_vectors: Of the task vectors, likewise; empty if there is no base.
        weight_sums: Sum of each model's weights, T; empty if not asked for.
        task_vector_sums: Sum of each task vector, T; empty if not asked for.
    """

    weights: tuple[tuple[float, ...], ...]
    task_vectors: tuple[tuple[float, ...], ...]
    weight_sums: tuple[float, ...] = ()
    task_vector_sums: tuple[float, ...] = ()


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
        rescales: Per model, what makes the kept elements of this tensor add up to the magnitude
            that all had; length T if the method needs `kept_sums`.
        statistics: Of each model, what data said about this piece, float32: Fisher diagonals of
            the piece's shape, or Gram matrices of the whole tensor; empty if there are none.
        inputs_first: Whether the first axis of this weight meets the inputs, not the last.
        report: Called with what the method had to repair and a number, which are added up over
            the pieces of a tensor and written into the manifest.
    """

    tensor: str = ""
    shape: tuple[int, ...] = ()
    start: int = 0
    seed: int = 0
    models: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    majority_sign: float = 1.0
    norms: TensorNorms | None = None
    rescales: tuple[float, ...] = ()
    statistics: tuple[Tensor, ...] = ()
    inputs_first: bool = False
    report: Callable[[str, float], None] = _report_nothing


@dataclass(frozen=True)
class Program:
    """What a method asks of the compiled kernel `combine`, which does it in one pass.

    Attributes:
        uses_base: Whether the models are taken as task vectors and the base is added at the end.
        thresholds: Per model, the smallest magnitude that is kept; empty to trim nothing.
        densities: Per model, the chance of an element to be kept; empty to drop nothing.
        rescaling: How kept elements are rescaled by `factors`.
        factors: Per model.
        join: How elements that agree with the elected sign are joined; None for the weighted
            sum of all.
        weigh_first: Whether coefficients weigh the vote.
        by_sign: Whether signs are added up in the vote, not values.
        tie: The sign that wins a tied vote.
        factor: On the joined update.
    """

    uses_base: bool = True
    thresholds: tuple[float, ...] = ()
    densities: tuple[float, ...] = ()
    rescaling: Literal["divide", "multiply"] | None = None
    factors: tuple[float, ...] = ()
    join: Literal["mean", "sum", "weighted_mean"] | None = None
    weigh_first: bool = True
    by_sign: bool = False
    tie: float = 1.0
    factor: float = 1.0


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
            one per tensor (for `options.density`), the majority of elected signs, inner products,
            sums of magnitudes before and after dropping.
        reads: The statistics made from data that every model must bring (`statistics` in the
            recipe); None for methods that need no data.
        needs_base: Whether the recipe must name a base model.
        weights_sum_to_one: Whether the coefficients are divided by their sum before the function
            sees them, which cancels any global scale.
        fewest_models: How many fine-tuned models there must be at least.
        most_models: How many there may be; None for any number.
        nan_refused: Why NAN's coefficients have no meaning for this method; empty if they have.
        refuse: Raises `CoefficientError` for T coefficients that have no meaning for this method,
            whatever they were made from; None if all have.
        varies: Options -> the fields of this row that they change; the row holds what the
            default options need.
        copies: Copies in float32 of what the function is given that it makes at once, beside three
            for each model; `nan_merge.cost` counts them.
        cost: What makes the method dear, in words; empty if it costs about what reading does.
        program: (options, context) -> the same computation for the compiled kernel, several times
            faster on a CPU; None for methods that only torch computes.
    """

    options: type[StrictModel]
    merge: MergeFunction
    paper: str
    unit: Unit = "element"
    needs: tuple[Statistic, ...] = ()
    reads: DataStatistic | None = None
    needs_base: bool = True
    weights_sum_to_one: bool = False
    fewest_models: int = 1
    most_models: int | None = None
    nan_refused: str = ""
    refuse: Callable[[Sequence[float]], None] | None = None
    varies: Callable[[Any], Mapping[str, Any]] | None = None
    copies: int = COPIES
    cost: str = ""
    program: Callable[[Any, Context], Program] | None = None

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


def refuse_negative(coefficients: Sequence[float], method: str) -> None:
    """Refuse coefficients that weigh information by less than nothing.

    Raises:
        CoefficientError: If one is negative.
    """
    if min(coefficients) < 0:
        raise CoefficientError(
            f"{method} weighs what each model knows, so no coefficient may be negative: "
            f"{list(coefficients)}. Give every model a `weight` of 0 or more."
        )


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
