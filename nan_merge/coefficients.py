"""One coefficient per model and per tensor: `c_i = lambda * scale * alpha_i * weight_i`.

NAN (arXiv 2505.16148, Eq. 10) sets `alpha_i = (1 / ||W_i||_F) / sum_j (1 / ||W_j||_F)`, and the
global scale m/2 for m models. What the paper leaves open (whose norm, over which tensors, which
scale) is a field of `CoefficientSpec`; its defaults are the paper's words. Other ways from norms
to alpha are rows of `nan_merge.shares.SHARES`. `weight_i` may differ from tensor to tensor
(`nan_merge.weights`); then so does the whole table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from nan_merge.coefficient_table import (
    WHOLE_MODEL,
    CoefficientTable,
    read_coefficients,
    scope_key,
)
from nan_merge.errors import CoefficientError, IncompatibleError
from nan_merge.methods import METHODS
from nan_merge.methods.method import TensorNorms
from nan_merge.norms import sum_norms
from nan_merge.recipe import CoefficientSpec, MergeRecipe
from nan_merge.shares import SHARES, SIZES, norm_scale
from nan_merge.weights import count_layers, is_plain, weights_by_tensor

Row = tuple[float, ...]


def check_num_layers(recipe: MergeRecipe, tensor_names: Sequence[str]) -> None:
    """Refuse models that have not the layers which the recipe asks for.

    Raises:
        IncompatibleError: With both numbers.
    """
    expected, found = recipe.num_layers, count_layers(tensor_names)
    if expected is not None and expected != found:
        raise IncompatibleError(
            f"The recipe is for models of {expected} layers (`num_layers`; in mergekit's files, "
            f"`layer_range: [0, {expected}]`), but these have {found}. Part of a model's layers "
            "cannot be merged: correct the number, or remove it."
        )


def compute_coefficients(
    recipe: MergeRecipe,
    tensor_names: Sequence[str],
    norms: Mapping[str, TensorNorms],
    num_elements: Mapping[str, int] | None = None,
) -> CoefficientTable:
    """The coefficient table of a recipe.

    Args:
        recipe: What is asked for.
        tensor_names: Every tensor that is merged.
        norms: Tensor name -> its norms; empty for sources that take none.
        num_elements: Tensor name -> number of its elements, for sources that divide by it.

    Raises:
        CoefficientError: If a norm is zero, the weights of an average sum to 0, `include` and
            `exclude` leave no tensor, or the method has no use for such coefficients.
        IncompatibleError: If the models have not the recipe's `num_layers`.
    """
    check_num_layers(recipe, tensor_names)
    spec = recipe.coefficients
    if spec.source == "matched":
        return _spread_evenly(recipe, tensor_names, norms)
    if spec.source == "table":
        return _from_file(recipe, tensor_names, norms)
    selected = _selected(spec, tensor_names) if norms else []
    used, alpha = _alphas(recipe, tensor_names, selected, norms, num_elements or {})
    num_merged = _num_merged(alpha)
    scope = _table_scope(recipe)
    if scope != spec.scope:
        alpha = {name: alpha[scope_key(spec.scope, name)] for name in tensor_names}
        used = {name: used[scope_key(spec.scope, name)] for name in tensor_names} if used else {}
    shares = _times_weights(recipe, scope, tensor_names, alpha)
    # The scale is about the whole update, whichever tensors the shares were made from.
    whole = _summed(scope, list(tensor_names) if norms else [], norms)
    scale = _scale(recipe, shares, whole, num_merged)
    if _sums_to_one(recipe):
        shares = {key: _normalised(row, key) for key, row in shares.items()}
    factor = spec.lambda_ * scale
    coefficients = {key: _rounded(factor, row) for key, row in shares.items()}
    _refuse_useless(recipe, coefficients)
    names = tuple(model.name for model in recipe.models)
    return CoefficientTable(names, scope, alpha, coefficients, used, scale)


def _from_file(
    recipe: MergeRecipe, tensor_names: Sequence[str], norms: Mapping[str, TensorNorms]
) -> CoefficientTable:
    """Coefficients that were learned, or made by another merge, times weights, scale and lambda."""
    path = Path(recipe.coefficients.table or "")
    scope, rows = read_coefficients(path, [model.name for model in recipe.models])
    if missing := sorted({scope_key(scope, name) for name in tensor_names} - rows.keys()):
        raise CoefficientError(
            f"{path} has no coefficients for {missing[0]}"
            f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}, which is merged. "
            "It was made for other models, or with another `scope`."
        )
    if not all(is_plain(model.weight) for model in recipe.models):
        rows = {name: rows[scope_key(scope, name)] for name in tensor_names}
        scope = "tensor"
    shares = _times_weights(recipe, scope, tensor_names, rows)
    scale = _scale(recipe, shares, _summed(scope, list(norms), norms), _num_merged(rows))
    if _sums_to_one(recipe):
        shares = {key: _normalised(row, key) for key, row in shares.items()}
    factor = recipe.coefficients.lambda_ * scale
    coefficients = {key: _rounded(factor, row) for key, row in shares.items()}
    _refuse_useless(recipe, coefficients)
    names = tuple(model.name for model in recipe.models)
    return CoefficientTable(names, scope, rows, coefficients, {}, scale)


def _sums_to_one(recipe: MergeRecipe) -> bool:
    return METHODS[recipe.method.name].for_options(recipe.method).weights_sum_to_one


def _table_scope(recipe: MergeRecipe) -> str:
    weighs_tensors = not all(is_plain(model.weight) for model in recipe.models)
    return "tensor" if weighs_tensors else recipe.coefficients.scope


def _rounded(factor: float, row: Sequence[float]) -> Row:
    with np.errstate(over="ignore"):
        return tuple(float(np.float32(factor * share)) for share in row)


def _refuse_useless(recipe: MergeRecipe, coefficients: Mapping[str, Row]) -> None:
    """Refuse numbers that are none, or that mean nothing to the recipe's method."""
    if not all(math.isfinite(number) for row in coefficients.values() for number in row):
        raise CoefficientError(
            "Some coefficients are too large for float32. Make `weight`, `lambda` or `scale` "
            "smaller."
        )
    if refuse := METHODS[recipe.method.name].refuse:
        for row in dict.fromkeys(coefficients.values()):
            refuse(row)


def _alphas(
    recipe: MergeRecipe,
    tensor_names: Sequence[str],
    selected: Sequence[str],
    norms: Mapping[str, TensorNorms],
    num_elements: Mapping[str, int],
) -> tuple[dict[str, Row], dict[str, Row]]:
    """Key -> T sizes (none for sources without), and key -> T shares, in the recipe's scope."""
    spec = recipe.coefficients
    keys = {scope_key(spec.scope, name): None for name in tensor_names}
    if spec.source not in SHARES:
        plain = spec.values or (1.0 / len(recipe.models),) * len(recipe.models)
        return {}, dict.fromkeys(keys, plain)
    groups: dict[str, list[str]] = {key: [] for key in keys}
    for name in selected:
        groups[scope_key(spec.scope, name)].append(name)
    used: dict[str, Row] = {}
    for key, names in groups.items():
        found = [norms[name] for name in names]
        kind = SHARES[spec.source].size
        assert num_elements or kind == "norm", f"{kind} is made from numbers of elements too"
        counts = [num_elements.get(name, 1) for name in names]
        # Where no tensor under a key is selected, or all are empty, its alpha is uniform.
        used[key] = SIZES[kind](found, counts, spec.target) if any(counts) else ()
    known = [row for row in used.values() if row]
    has_norm = [any(sizes) for sizes in zip(*known, strict=True)]
    if known and not any(has_norm):
        raise CoefficientError(
            f"Every model has a {_kind_of_norm(spec)} of 0, so {spec.source} has nothing to weigh. "
            "Are these the fine-tuned models, and is `base` another one?"
        )
    sharing = has_norm if known else [True] * len(recipe.models)
    return used, {key: _shares_of_key(recipe, key, row, sharing) for key, row in used.items()}


def _kind_of_norm(spec: CoefficientSpec) -> str:
    return "task-vector norm" if spec.target == "task_vector" else "weight norm"


def _shares_of_key(recipe: MergeRecipe, key: str, sizes: Row, sharing: Sequence[bool]) -> Row:
    """The shares under one key, where ``sharing`` says which models have a norm anywhere."""
    spec = recipe.coefficients
    row = SHARES[spec.source]
    if not any(sizes):
        # Nothing was selected here, or no model changed it: any shares give the same result.
        return tuple(float(shares) / sum(sharing) for shares in sharing)
    zero = [model.name for model, size in zip(recipe.models, sizes, strict=True) if size == 0]
    if zero and row.inverts and spec.zero_norm == "error":
        where = "" if key == WHOLE_MODEL else f" in {key}"
        who = f"Model {zero[0]} has" if len(zero) == 1 else f"Models {', '.join(zero)} have"
        raise CoefficientError(
            f"{who} a {_kind_of_norm(spec)} of 0{where}: {spec.source} would divide by it. Such a "
            "model learned nothing there: leave it out, or set `zero_norm: exclude` to give it "
            "coefficient 0."
        )
    kept = iter(row.share([size for size in sizes if size != 0], spec.power))
    return tuple(next(kept) if size != 0 else 0.0 for size in sizes)


def _spread_evenly(
    recipe: MergeRecipe, tensor_names: Sequence[str], norms: Mapping[str, TensorNorms]
) -> CoefficientTable:
    """NAN's sum in parts that go by weight alone: NAN without its allocation."""
    spec = recipe.coefficients.model_copy(update={"source": "nan"})
    as_nan = recipe.model_copy(update={"coefficients": spec})
    table = compute_coefficients(as_nan, tensor_names, norms)
    merged = [any(column) for column in zip(*table.alpha.values(), strict=True)]
    alpha = dict.fromkeys(table.alpha, tuple(float(here) / sum(merged) for here in merged))
    weights = _times_weights(recipe, table.scope, tensor_names, alpha)
    coefficients = {
        key: _rounded(math.fsum(row), _normalised(weights[key], key)) if any(row) else row
        for key, row in table.coefficients.items()
    }
    return CoefficientTable(table.models, table.scope, alpha, coefficients, {}, table.scale)


def _selected(spec: CoefficientSpec, tensor_names: Sequence[str]) -> list[str]:
    names = [name for name in tensor_names if _is_selected(spec, name)]
    if not names:
        raise CoefficientError(
            f"`include: {list(spec.include)}` and `exclude: {list(spec.exclude)}` leave no tensor "
            "to take norms of; tensors are called, for example, "
            + ", ".join(list(tensor_names)[:3])
            + "."
        )
    return names


def _is_selected(spec: CoefficientSpec, name: str) -> bool:
    included = any(fnmatchcase(name, pattern) for pattern in spec.include)
    return included and not any(fnmatchcase(name, pattern) for pattern in spec.exclude)


def _summed(
    scope: str, selected: Sequence[str], norms: Mapping[str, TensorNorms]
) -> dict[str, TensorNorms]:
    groups: dict[str, list[TensorNorms]] = {}
    for name in selected:
        groups.setdefault(scope_key(scope, name), []).append(norms[name])
    return {key: sum_norms(group) for key, group in groups.items()}


def _times_weights(
    recipe: MergeRecipe, scope: str, tensor_names: Sequence[str], alpha: Mapping[str, Row]
) -> dict[str, Row]:
    weights = [model.weight for model in recipe.models]
    # Without gradients and rules a weight is the same for every name, a scope's key too.
    by_key = weights_by_tensor(weights, tensor_names if scope == "tensor" else list(alpha))
    return {
        key: tuple(share * weight for share, weight in zip(row, by_key[key], strict=True))
        for key, row in alpha.items()
    }


def _normalised(row: Sequence[float], key: str) -> Row:
    total = math.fsum(row)
    if total == 0:
        where = "" if key == WHOLE_MODEL else f" in {key}"
        raise CoefficientError(
            f"The weights of all models sum to 0{where}, so they cannot be divided by their sum. "
            "Give some model a weight there."
        )
    return tuple(value / total for value in row)


def _num_merged(alpha: Mapping[str, Sequence[float]]) -> int:
    """The m of m/2: models that take part somewhere (`zero_norm: exclude` takes some out)."""
    return sum(any(values) for values in zip(*alpha.values(), strict=True))


def _scale(
    recipe: MergeRecipe,
    shares: Mapping[str, Row],
    grouped: Mapping[str, TensorNorms],
    num_merged: int,
) -> float:
    spec = recipe.coefficients
    if _sums_to_one(recipe):
        return 1.0
    chosen = spec.scale
    if chosen is None:
        inverts = spec.source in SHARES and SHARES[spec.source].inverts
        chosen = "paper" if inverts else {"uniform": "count"}.get(spec.source, 1.0)
    if chosen == "paper":
        return num_merged / 2
    if chosen == "count":
        return float(num_merged)
    if chosen == "norm":
        return norm_scale(shares, grouped)
    return float(chosen)
