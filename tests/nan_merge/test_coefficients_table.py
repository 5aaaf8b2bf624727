"""Coefficients from a table in a file: of AdaMerging, or of another merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from nan_merge.coefficient_table import read_coefficients
from nan_merge.coefficients import compute_coefficients
from nan_merge.errors import CoefficientError
from nan_merge.manifest import read_manifest
from nan_merge.merge import merge_checkpoint
from nan_merge.recipe import MergeRecipe

NAMES = ["head", "layers.0.w", "layers.0.b"]
LAYERS = {"m0": {"head": 0.1, "layers.0": 0.2}, "m1": {"head": 0.3, "layers.0": 0.4}}


def write(path: Path, scope: str, coefficients: Any) -> str:
    path.write_text(json.dumps({"scope": scope, "coefficients": coefficients}))
    return str(path)


def recipe(table: str, method: object = "task_arithmetic", weights=(1.0, 1.0), **spec: Any):
    models = [{"path": f"m{i}", "name": f"m{i}", "weight": w} for i, w in enumerate(weights)]
    coefficients = {"source": "table", "table": table, **spec}
    content = {"base": "b", "models": models, "method": method, "coefficients": coefficients}
    return MergeRecipe.model_validate(content)


def test_numbers_of_layers_are_those_of_their_tensors(tmp_path):
    path = write(tmp_path / "t.json", "layer", LAYERS)
    table = compute_coefficients(recipe(path, **{"lambda": 2.0}), NAMES, {})
    assert (table.scope, table.scale) == ("layer", 1.0)
    assert table.for_tensor("layers.0.b") == pytest.approx((0.4, 0.8))
    assert table.for_tensor("head") == pytest.approx((0.2, 0.6))


def test_weights_are_factors_also_where_they_differ_by_tensor(tmp_path):
    path = write(tmp_path / "t.json", "model", {"m1": 0.5, "m0": 0.25, "other": 9})
    plain = compute_coefficients(recipe(path, weights=(2.0, 1.0)), NAMES, {})
    assert plain.for_tensor("head") == (0.5, 0.5)
    rules = ([{"filter": "head", "value": 4.0}, {"value": 2.0}], 1.0)
    table = compute_coefficients(recipe(path, weights=rules), NAMES, {})
    assert table.scope == "tensor"
    assert [table.for_tensor(name) for name in NAMES] == [(1.0, 0.5), (0.5, 0.5), (0.5, 0.5)]


def test_methods_whose_weights_sum_to_one_divide_by_the_sum(tmp_path):
    path = write(tmp_path / "t.json", "layer", LAYERS)
    table = compute_coefficients(recipe(path, "average"), NAMES, {})
    assert table.for_tensor("head") == pytest.approx((0.25, 0.75))


@pytest.mark.parametrize(
    ("scope", "coefficients", "message"),
    [
        ("model", {"m0": 1.0}, "has coefficients of m0, but none of m1"),
        ("layer", {"m0": {"head": 1.0}, "m1": {"head": 1.0}}, "has no coefficients for layers.0"),
        ("layer", {"m0": {"head": 1.0}, "m1": {"layers.0": 1.0}}, "m1 has other keys than m0"),
        ("model", {"m0": "x", "m1": 1.0}, "is no readable table of coefficients"),
        ("model", {"m0": float("inf"), "m1": 1.0}, "a coefficient is not finite"),
        ("block", {"m0": 1.0, "m1": 1.0}, "scope 'block'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, scope, coefficients, message):
    path = write(tmp_path / "t.json", scope, coefficients)
    with pytest.raises(CoefficientError, match=message):
        compute_coefficients(recipe(path), NAMES, {})


def test_files_that_are_no_tables_are_refused(tmp_path):
    with pytest.raises(CoefficientError, match=r"none\.json is no readable table"):
        read_coefficients(tmp_path / "none.json", ["m0"])
    with pytest.raises(ValidationError, match="goes with `source: table`, and only with it"):
        recipe("x", source="uniform")
    with pytest.raises(ValidationError, match="would do nothing: `source: table` takes no norms"):
        recipe("x", target="task_vector")


def test_a_manifest_gives_the_same_merge_again(family, tmp_path):
    models = [family["math"], family["code"]]
    content = {"base": family["base"], "models": models, "method": "task_arithmetic"}
    nan = {"source": "nan", "target": "task_vector", "scope": "tensor"}
    first = MergeRecipe.model_validate(content | {"coefficients": nan})
    one = merge_checkpoint(first, tmp_path / "one").output
    table = {"source": "table", "table": str(one / "merge_manifest.json")}
    second = MergeRecipe.model_validate(content | {"coefficients": table})
    other = merge_checkpoint(second, tmp_path / "other").output
    a, b = (load_file(path / "model.safetensors") for path in (one, other))
    assert all(a[name].equal(b[name]) for name in a)
    # The file's content decides what the merge is, and not where it lies.
    copy = tmp_path / "copy.json"
    copy.write_bytes((one / "merge_manifest.json").read_bytes())
    third = MergeRecipe.model_validate(content | {"coefficients": table | {"table": str(copy)}})
    again = merge_checkpoint(third, tmp_path / "third").output
    keys = [read_manifest(path / "merge_manifest.json")["merge_key"] for path in (other, again)]
    assert keys[0] == keys[1] != read_manifest(one / "merge_manifest.json")["merge_key"]
