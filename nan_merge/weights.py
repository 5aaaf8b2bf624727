"""A model's weight, tensor by tensor: a number, a gradient over layers, or rules by tensor name.

Options of methods take the same forms (`nan_merge.tensor_options`).

A gradient is a list of numbers that stand at equal distances from the first layer to the last;
between them the weight is interpolated linearly. As in mergekit (README, "Parameter
Specification"; config.py and plan.py), tensors outside the layers (embeddings, final norm, head)
take the first number, and the only layer of a model that has one takes the last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pydantic import Field

from nan_merge.checkpoint import layer_of
from nan_merge.schema import StrictModel

Gradient = tuple[float, ...]


class Rule(StrictModel):
    """A value for tensors of some names."""

    filter: str = Field(default="*", min_length=1)
    """Glob pattern of tensor names, such as `*mlp*`; every name if absent."""
    value: float | Gradient
    """A number, or a list of numbers interpolated over the layers."""


Weight = float | tuple[float | Rule, ...]


@dataclass(frozen=True)
class LayerPlace:
    """Where a tensor stands among the layers of its model.

    Attributes:
        index: Number of its layer, from 0; None outside the layers.
        num_layers: Layers in its stack; 0 outside the layers.
    """

    index: int | None = None
    num_layers: int = 0


def layer_places(tensor_names: Iterable[str]) -> dict[str, LayerPlace]:
    """Name -> place among the layers, told from the first number in the name.

    A stack of layers is all names with the same text before their first number; a model may have
    several (a vision tower and a language model), each with its own number of layers.
    """
    found: dict[str, tuple[str, int]] = {}
    num_layers: dict[str, int] = {}
    names = list(tensor_names)
    for name in names:
        stack, _, number = layer_of(name).rpartition(".")
        if number.isdecimal():
            found[name] = stack, int(number)
            num_layers[stack] = max(num_layers.get(stack, 0), int(number) + 1)
    return {
        name: LayerPlace(found[name][1], num_layers[found[name][0]])
        if name in found
        else LayerPlace()
        for name in names
    }


def count_layers(tensor_names: Iterable[str]) -> int:
    """Layers of the longest stack; 0 if no name holds a number."""
    return max((place.num_layers for place in layer_places(tensor_names).values()), default=0)


def is_plain(weight: Weight) -> bool:
    """Whether a weight is one number for every tensor."""
    return not isinstance(weight, tuple)


def weight_of(
    weight: Weight,
    tensor_name: str,
    layer_index: int | None = None,
    num_layers: int = 0,
    default: float = 0.0,
) -> float:
    """The weight that one tensor gets.

    Args:
        weight: A number, a gradient, or rules of which the first that fits the name counts.
        tensor_name: Full name of the tensor.
        layer_index: Number of its layer, from 0; None for a tensor outside the layers.
        num_layers: Layers of the model.
        default: What holds if no rule fits; a weight of 0 keeps the base.
    """
    if not isinstance(weight, tuple):
        return float(weight)
    gradient = tuple(entry for entry in weight if not isinstance(entry, Rule))
    if gradient:
        return _interpolate(gradient, layer_index, num_layers)
    for rule in weight:
        if isinstance(rule, Rule) and fnmatchcase(tensor_name, rule.filter):
            return _interpolate(rule.value, layer_index, num_layers)
    return default


def _interpolate(value: float | Gradient, layer_index: int | None, num_layers: int) -> float:
    if not isinstance(value, tuple):
        return float(value)
    if layer_index is None:
        return float(value[0])
    depth = layer_index / (num_layers - 1) if num_layers > 1 else 1.0
    place = depth * (len(value) - 1)
    below = int(place)
    above = min(below + 1, len(value) - 1)
    fraction = place - below
    return (1 - fraction) * value[below] + fraction * value[above]


def check_weight(weight: Weight) -> None:
    """Refuse a list of weights that means nothing.

    Raises:
        ValueError: If numbers and rules are mixed, a list is empty, or a rule can never be reached.
    """
    if not isinstance(weight, tuple):
        return
    rules = [entry for entry in weight if isinstance(entry, Rule)]
    if not weight or any(rule.value == () for rule in rules):
        raise ValueError("an empty list, expected numbers or rules")
    if rules and len(rules) < len(weight):
        raise ValueError(
            "numbers and rules in one list; expected numbers alone (a gradient over layers), "
            "or `{filter: ..., value: ...}` alone"
        )
    for place, rule in enumerate(rules[:-1]):
        if rule.filter == "*":
            raise ValueError(
                f"rule {place} fits every tensor, so those after it are never reached; put the "
                "rule without `filter` last"
            )


def weights_by_tensor(
    weights: Sequence[Weight], tensor_names: Iterable[str]
) -> dict[str, tuple[float, ...]]:
    """Tensor's name -> the weight of each of T models, in the order of ``weights``."""
    return {
        name: tuple(weight_of(weight, name, place.index, place.num_layers) for weight in weights)
        for name, place in layer_places(tensor_names).items()
    }
