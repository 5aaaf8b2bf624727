"""One coefficient per model and per tensor: `c_i = lambda * scale * alpha_i * weight_i`.

NAN (arXiv 2505.16148, Eq. 10) sets `alpha_i = (1 / ||W_i||_F) / sum_j (1 / ||W_j||_F)`, and the
global scale m/2 for m models. What the paper leaves open (whose norm, over which tensors, which
scale) is a field of `CoefficientSpec`; its defaults are the paper's words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from nan_merge.checkpoint import layer_of
from nan_merge.errors import CoefficientError
from nan_merge.methods import METHODS
from nan_merge.recipe import CoefficientSpec, MergeRecipe
from nan_merge.statistics import TensorNorms, sum_norms

WHOLE_MODEL = "*"  # the only key of a table whose scope is the model


@dataclass(frozen=True)
class CoefficientTable:
    """What the merge reads: one number per model for each key of the scope.

    Attributes:
        models: Names of T models, in the recipe's order.
        scope: "model", "layer" or "tensor": what the keys are.
        alpha: Key -> T shares; for NAN they sum to 1.
        coefficients: Key -> T numbers, rounded to float32.
        norms: Key -> T norms that alpha was made from; empty for sources without norms.
        scale: The global factor, lambda not included.
    """

    models: tuple[str, ...]
    scope: str
    alpha: dict[str, tuple[float, ...]]
    coefficients: dict[str, tuple[float, ...]]
    norms: dict[str, tuple[float, ...]]
    scale: float

    def for_tensor(self, tensor_name: str) -> tuple[float, ...]:
        """The T coefficients of one tensor."""
        return self.coefficients[scope_key(self.scope, tensor_name)]

    def is_nearly_uniform(self, tolerance: float = 0.01) -> bool:
        """Whether all coefficients of every key lie within ``tolerance`` of each other."""
        return all(max(c) - min(c) <= tolerance * abs(max(c)) for c in self.coefficients.values())

    def as_json(self) -> dict[str, Any]:
        """For files: model -> number, or model -> layer or tensor -> number."""
        return {
            "scope": self.scope,
            "scale": self.scale,
            "norms": self._by_model(self.norms),
            "alpha": self._by_model(self.alpha),
            "coefficients": self._by_model(self.coefficients),
        }

    def _by_model(self, values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        if self.scope == "model":
            row = values.get(WHOLE_MODEL, ())
            return dict(zip(self.models, row, strict=False))
        return {
            model: {key: row[place] for key, row in values.items()}
            for place, model in enumerate(self.models)
            if values
        }


def needs_norms(spec: CoefficientSpec) -> bool:
    """Whether these coefficients can only be known after the models were measured."""
    return spec.source in ("nan", "matched") or spec.scale == "norm"


def scope_key(scope: str, tensor_name: str) -> str:
    """Under which key of a table a tensor's coefficients stand."""
    return {"model": WHOLE_MODEL, "layer": layer_of(tensor_name)}.get(scope, tensor_name)


def nan_alpha(norms: Sequence[float], power: float = 1.0) -> tuple[float, ...]:
    """Share of each model: its inverse norm over the sum of all (NAN, arXiv 2505.16148, Eq. 10).

    Args:
        norms: T Frobenius norms; positive and finite.
        power: Exponent of the norm; 1 in the paper.

    Returns:
        T numbers that sum to 1.

    Raises:
        ValueError: If a norm is zero, negative or not finite.
    """
    if not all(math.isfinite(norm) and norm > 0 for norm in norms):
        raise ValueError(f"norms must be positive and finite, got {list(norms)}")
    smallest = min(norms)  # ratios cannot overflow where inverses of powers could
    inverse = [(smallest / norm) ** power for norm in norms]
    total = math.fsum(inverse)
    return tuple(value / total for value in inverse)


def compute_coefficients(
    recipe: MergeRecipe,
    tensor_names: Sequence[str],
    norms: Mapping[str, TensorNorms],
) -> CoefficientTable:
    """The coefficient table of a recipe.

    Args:
        recipe: What is asked for.
        tensor_names: Every tensor that is merged.
        norms: Tensor name -> its norms; may be empty if `needs_norms` says so.

    Raises:
        CoefficientError: If a norm is zero, or `include` and `exclude` leave no tensor.
    """
    spec = recipe.coefficients
    keys = {scope_key(spec.scope, name): None for name in tensor_names}
    grouped = _group_norms(spec, tensor_names, norms) if norms else {}
    if spec.source == "matched":
        return _spread_evenly(compute_coefficients(_as_nan(recipe), tensor_names, norms))
    used: dict[str, tuple[float, ...]] = {}
    alpha: dict[str, tuple[float, ...]] = {}
    for key in keys:
        if spec.source == "nan":
            used[key] = _norms_of(spec, grouped.get(key), key)
            alpha[key] = _nan_alpha_of_key(recipe, key, used[key])
        else:
            alpha[key] = _plain_alpha(recipe)
    shares = {key: _times_weights(recipe, row) for key, row in alpha.items()}
    scale = _scale(recipe, shares, grouped, num_merged=_num_merged(alpha))
    factor = spec.lambda_ * scale
    if METHODS[recipe.method.name].weights_sum_to_one:
        shares = {key: _normalised(row) for key, row in shares.items()}
    coefficients = {
        key: tuple(float(np.float32(factor * share)) for share in row)
        for key, row in shares.items()
    }
    names = tuple(model.name for model in recipe.models)
    return CoefficientTable(names, spec.scope, alpha, coefficients, used, scale)


def _as_nan(recipe: MergeRecipe) -> MergeRecipe:
    spec = recipe.coefficients.model_copy(update={"source": "nan"})
    return recipe.model_copy(update={"coefficients": spec})


def _spread_evenly(table: CoefficientTable) -> CoefficientTable:
    """NAN's sum in equal parts: what is left of NAN when its allocation is taken away."""
    num_models = len(table.models)

    def even(row: Sequence[float]) -> tuple[float, ...]:
        return (float(np.float32(math.fsum(row) / num_models)),) * num_models

    coefficients = {key: even(row) for key, row in table.coefficients.items()}
    alpha = {key: (1.0 / num_models,) * num_models for key in table.alpha}
    return CoefficientTable(table.models, table.scope, alpha, coefficients, {}, table.scale)


def _group_norms(
    spec: CoefficientSpec, tensor_names: Sequence[str], norms: Mapping[str, TensorNorms]
) -> dict[str, TensorNorms]:
    groups: dict[str, list[TensorNorms]] = {}
    for name in tensor_names:
        if _is_selected(spec, name):
            groups.setdefault(scope_key(spec.scope, name), []).append(norms[name])
    if not groups:
        raise CoefficientError(
            f"`include: {list(spec.include)}` and `exclude: {list(spec.exclude)}` leave no tensor "
            "to take norms of; tensors are called, for example, "
            + ", ".join(list(tensor_names)[:3])
            + "."
        )
    return {key: sum_norms(group) for key, group in groups.items()}


def _is_selected(spec: CoefficientSpec, name: str) -> bool:
    included = any(fnmatchcase(name, pattern) for pattern in spec.include)
    return included and not any(fnmatchcase(name, pattern) for pattern in spec.exclude)


def _norms_of(spec: CoefficientSpec, norms: TensorNorms | None, key: str) -> tuple[float, ...]:
    if norms is None:
        return ()  # no tensor under this key is selected: its alpha is uniform
    if spec.target == "weights":
        return tuple(math.sqrt(square) for square in norms.weight_squares)
    return tuple(math.sqrt(row[place]) for place, row in enumerate(norms.gram))


def _nan_alpha_of_key(recipe: MergeRecipe, key: str, norms: tuple[float, ...]) -> tuple[float, ...]:
    spec = recipe.coefficients
    num_models = len(recipe.models)
    zero = [model.name for model, norm in zip(recipe.models, norms, strict=False) if norm == 0]
    if not norms or (len(zero) == num_models and key != WHOLE_MODEL):
        # Nothing was selected here, or no model changed it: any shares give the same result.
        return (1.0 / num_models,) * num_models
    if zero and (spec.zero_norm == "error" or len(zero) == num_models):
        what = "task vector" if spec.target == "task_vector" else "weights"
        where = "" if key == WHOLE_MODEL else f" in {key}"
        raise CoefficientError(
            f"The {what} of model {', '.join(zero)} have norm 0{where}: NAN would divide by it. "
            "Such a model learned nothing there: leave it out, or set `zero_norm: exclude` to give "
            "it coefficient 0."
        )
    kept = iter(nan_alpha([norm for norm in norms if norm != 0], spec.power))
    return tuple(next(kept) if norm != 0 else 0.0 for norm in norms)


def _plain_alpha(recipe: MergeRecipe) -> tuple[float, ...]:
    if recipe.coefficients.values is not None:
        return recipe.coefficients.values
    return (1.0 / len(recipe.models),) * len(recipe.models)


def _times_weights(recipe: MergeRecipe, row: Sequence[float]) -> tuple[float, ...]:
    return tuple(share * model.weight for share, model in zip(row, recipe.models, strict=True))


def _normalised(row: Sequence[float]) -> tuple[float, ...]:
    total = math.fsum(row)
    if total == 0:
        raise CoefficientError(
            "The weights of an average sum to 0, so they cannot be divided by it."
        )
    return tuple(value / total for value in row)


def _num_merged(alpha: Mapping[str, Sequence[float]]) -> int:
    """The m of m/2: models that take part somewhere (`zero_norm: exclude` takes some out)."""
    return sum(any(values) for values in zip(*alpha.values(), strict=True))


def _scale(
    recipe: MergeRecipe,
    shares: Mapping[str, tuple[float, ...]],
    grouped: Mapping[str, TensorNorms],
    num_merged: int,
) -> float:
    spec = recipe.coefficients
    if METHODS[recipe.method.name].weights_sum_to_one:
        return 1.0
    chosen = spec.scale
    if chosen is None:
        chosen = {"nan": "paper", "uniform": "count"}.get(spec.source, 1.0)
    if chosen == "paper":
        return num_merged / 2
    if chosen == "count":
        return float(num_merged)
    if chosen == "norm":
        return norm_scale(shares, grouped)
    return float(chosen)


def norm_scale(shares: Mapping[str, Sequence[float]], grouped: Mapping[str, TensorNorms]) -> float:
    """The factor at which the merged update is as long as the mean task vector.

    `mean_i ||tau_i|| / ||sum_i a_i tau_i||`, from inner products alone; no data is needed. It is
    the length of the plain weighted sum, also for methods that trim or drop elements.

    Args:
        shares: Key -> T factors a_i before scaling.
        grouped: Key -> inner products of the task vectors.

    Raises:
        CoefficientError: If the weighted task vectors cancel or are all zero.
    """
    whole = sum_norms(list(grouped.values()))
    lengths = [math.sqrt(row[place]) for place, row in enumerate(whole.gram)]
    square = math.fsum(
        shares[key][i] * shares[key][j] * product
        for key, norms in grouped.items()
        for i, row in enumerate(norms.gram)
        for j, product in enumerate(row)
    )
    if square <= 0:
        raise CoefficientError(
            "`scale: norm` divides by the length of the weighted sum of task vectors, which is 0: "
            "the models learned nothing, or cancel each other. Give `scale` as a number."
        )
    return math.fsum(lengths) / len(lengths) / math.sqrt(square)
