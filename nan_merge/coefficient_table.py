"""The table of coefficients: what a merge reads, and what is written beside its result."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nan_merge.checkpoint import layer_of
from nan_merge.errors import CoefficientError

Row = tuple[float, ...]

WHOLE_MODEL = "*"  # the only key of a table whose scope is the model


def nearly_equal(values: Sequence[float], tolerance: float = 0.01) -> bool:
    """Whether numbers lie within ``tolerance`` of each other, relative to the largest."""
    return max(values) - min(values) <= tolerance * abs(max(values))


@dataclass(frozen=True)
class CoefficientTable:
    """What the merge reads: one number per model for each key of the scope.

    Attributes:
        models: Names of T models, in the recipe's order.
        scope: "model", "layer" or "tensor": what the keys are.
        alpha: Key -> T shares; from norms they sum to 1.
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
        return all(nearly_equal(row, tolerance) for row in self.coefficients.values())

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
            model: {key: row[place] for key, row in values.items() if row}
            for place, model in enumerate(self.models)
            if values
        }


def read_coefficients(path: Path, models: Sequence[str]) -> tuple[str, dict[str, Row]]:
    """The coefficients in a file, as `CoefficientTable.as_json` or a merge's manifest has them.

    Args:
        path: A JSON file.
        models: Names of T models, in the order wanted.

    Returns:
        The scope of the keys, and key -> T numbers.

    Raises:
        CoefficientError: If the file is missing or no such table, or lacks a model or a key.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        scope, found = content["scope"], content["coefficients"]
        rows = {name: _by_key(scope, found[name]) for name in models if name in found}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CoefficientError(
            f"{path} is no readable table of coefficients ({type(error).__name__}: {error}). Name "
            "a file that AdaMerging wrote, or the `merge_manifest.json` of a merge."
        ) from error
    if unknown := [name for name in models if name not in rows]:
        raise CoefficientError(
            f"{path} has coefficients of {', '.join(found)}, but none of {', '.join(unknown)}. "
            "Name the models as they are called there."
        )
    keys = list(rows[models[0]])
    for name, row in rows.items():
        if row.keys() != rows[models[0]].keys():
            raise CoefficientError(f"{path}: {name} has other keys than {models[0]}.")
    return scope, {key: tuple(rows[name][key] for name in models) for key in keys}


def _by_key(scope: str, value: Any) -> dict[str, float]:
    if scope not in ("model", "layer", "tensor"):
        raise ValueError(f"scope {scope!r}")
    by_key = {WHOLE_MODEL: value} if scope == "model" else dict(value)
    numbers = {key: float(number) for key, number in by_key.items()}
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError("a coefficient is not finite")
    return numbers


def scope_key(scope: str, tensor_name: str) -> str:
    """Under which key of a table a tensor's coefficients stand."""
    return {"model": WHOLE_MODEL, "layer": layer_of(tensor_name)}.get(scope, tensor_name)
