"""Options of a method that differ between tensors, as plain numbers for each tensor.

What takes one number for all models takes, in its place:

- a list with an entry per model, each a number, a gradient over the layers (a list of numbers),
  or a list of rules `{filter: PATTERN, value: number or gradient}`;
- a list of rules alone, which then holds for every model. `[{value: [1, 0.2]}]` is a gradient.

Rules and gradients mean what they mean for a model's weight (`nan_merge.weights`), but where no
rule fits a tensor, the option's default holds. Methods never see any of it: the engine gives them
the numbers of the tensor at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from nan_merge.errors import IncompatibleError
from nan_merge.schema import StrictModel
from nan_merge.weights import Gradient, Rule, check_weight, layer_places, weight_of

# What one model has in a list with an entry per model.
ModelEntry = float | tuple[float | Rule, ...]
OptionList = tuple[Rule | ModelEntry, ...]
OptionValue = float | OptionList
Options = TypeVar("Options", bound=StrictModel)
THRESHOLD_OF_ALL = (
    "in this dialect a model's largest elements are those of the whole model, whichever tensor "
    "they lie in. Use `dialect: mergekit` or `peft`, which take them tensor by tensor"
)


def in_range_of(number: Any) -> Callable[[OptionValue], OptionValue]:
    """A validator: every number in a list must be what a single one must be.

    Args:
        number: The type of a single number, such as ``Annotated[float, Field(gt=0, le=1)]``.
    """
    adapter = TypeAdapter(number)

    def check(value: OptionValue) -> OptionValue:
        if not isinstance(value, tuple):
            return value
        check_option(value)
        for each in _numbers(value):
            try:
                adapter.validate_python(each)
            except ValidationError as error:
                reason = error.errors()[0]["msg"].removeprefix("Input should be ")
                raise ValueError(
                    f"found {each:g} in the list, expected a number {reason}"
                ) from None
        return value

    return check


def check_option(value: OptionList) -> None:
    """Refuse a list that means nothing.

    Raises:
        ValueError: If it mixes rules with other entries, or a list is empty, or a rule can never
            be reached.
    """
    if any(isinstance(entry, Rule) for entry in value):
        if not all(isinstance(entry, Rule) for entry in value):
            raise ValueError(
                "rules and other entries in one list; expected rules alone (for every model), or "
                "one entry per model, whose rules are in a list of their own"
            )
        check_weight(_rules(value))
        return
    for entry in value:
        if isinstance(entry, tuple):
            check_weight(entry)


def _rules(value: OptionList) -> tuple[Rule, ...]:
    return tuple(entry for entry in value if isinstance(entry, Rule))


def _numbers(value: OptionValue | Gradient | Rule) -> Iterator[float]:
    if isinstance(value, Rule):
        yield from _numbers(value.value)
    elif isinstance(value, tuple):
        for entry in value:
            yield from _numbers(entry)
    else:
        yield value


def plain_number(entry: Rule | ModelEntry) -> float:
    """One entry of a list that was resolved for a tensor.

    Raises:
        ValueError: If it was not.
    """
    if isinstance(entry, Rule | tuple):
        raise ValueError("gradients and rules must be resolved for a tensor first")
    return entry


def differs_by_tensor(value: Any) -> bool:
    """Whether an option's value is neither one number nor one number per model."""
    return isinstance(value, tuple) and any(isinstance(entry, tuple | Rule) for entry in value)


def check_entries(options: StrictModel, num_models: int) -> None:
    """Refuse lists that have not one entry per model.

    Raises:
        ValueError: With the option's name and both numbers.
    """
    for option, value in options:
        if not isinstance(value, tuple) or any(isinstance(entry, str) for entry in value):
            continue  # names of tensors are no numbers of models
        if not _rules(value) and len(value) != num_models:
            what = "entries" if differs_by_tensor(value) else "numbers"
            raise ValueError(
                f"method.{option} has {len(value)} {what} for {num_models} models; give one "
                "number, or one each"
            )


def refuse_by_tensor(options: StrictModel, why: str) -> None:
    """Refuse values that differ by tensor, for a method which takes them for the whole model.

    Raises:
        ValueError: With the option's name and the reason.
    """
    for option, value in options:
        if differs_by_tensor(value):
            raise ValueError(f"method.{option} must be one number, or one per model: {why}")


def options_by_tensor(
    options: Options, tensor_names: Iterable[str], num_models: int
) -> dict[str, Options]:
    """Tensor's name -> the options that hold in it, all of them plain numbers, one per model.

    Empty if no option differs by tensor. Equal options are one object.

    Args:
        options: A method's options.
        tensor_names: All tensors that are merged; layers are counted in them.
        num_models: T.

    Raises:
        IncompatibleError: If numbers that are each in range do not go together in some tensor.
    """
    differing = {option: value for option, value in options if differs_by_tensor(value)}
    if not differing:
        return {}
    made: dict[tuple[tuple[float, ...], ...], Options] = {}
    found: dict[str, Options] = {}
    for name, place in layer_places(tensor_names).items():
        numbers = tuple(
            tuple(
                weight_of(entry, name, place.index, place.num_layers, default)
                for entry in _per_model(value, num_models)
            )
            for default, value in (
                (type(options).model_fields[option].default, value)
                for option, value in differing.items()
            )
        )
        if numbers not in made:
            made[numbers] = _with_numbers(options, dict(zip(differing, numbers, strict=True)), name)
        found[name] = made[numbers]
    return found


def _per_model(value: OptionList, num_models: int) -> list[ModelEntry]:
    if rules := _rules(value):
        return [rules] * num_models
    return [entry for entry in value if not isinstance(entry, Rule)]


def _with_numbers(options: Options, numbers: dict[str, tuple[float, ...]], name: str) -> Options:
    try:
        return type(options).model_validate({**dict(options), **numbers})
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise IncompatibleError(
            f"The method's options do not suit tensor {name}: {reason}"
        ) from None
