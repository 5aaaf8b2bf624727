from typing import Any, get_args

import pytest
from pydantic import ValidationError

from nan_merge.methods import METHODS, MethodOptions
from tests.method_reference import options_of


def test_every_method_is_a_choice_of_the_recipe():
    union = get_args(get_args(MethodOptions)[0])
    assert {row.options for row in METHODS.values()} == set(union)
    assert {name: options_of(name).name for name in METHODS} == {n: n for n in METHODS}  # pyright: ignore


def test_the_row_holds_what_the_default_options_need():
    for name, row in METHODS.items():
        assert row.for_options(options_of(name)) == row


@pytest.mark.parametrize(
    ("name", "options", "unit", "needs"),
    [
        ("ties", {"dialect": "fusionbench"}, "element", ("magnitude_threshold", "majority_sign")),
        ("ties", {"dialect": "mergekit"}, "element", ("tensor_threshold",)),
        ("ties", {"dialect": "peft"}, "element", ("tensor_threshold",)),
        ("dare_ties", {}, "element", ()),
        ("dare_ties", {"dialect": "mergekit"}, "element", ("kept_sums",)),
        ("dare_linear", {"dialect": "mergekit", "rescale": False}, "element", ()),
        ("della_ties", {"dialect": "mergekit"}, "matrix", ()),
        ("breadcrumbs", {"rows": True}, "row", ()),
        ("nuslerp", {"vectors": "row"}, "row", ()),
        ("nuslerp", {"vectors": "column"}, "matrix", ()),
        ("model_stock", {"vectors": "row"}, "row", ()),
        ("sce", {"density": 0.5}, "matrix", ()),
    ],
)
def test_options_change_pieces_and_statistics(
    name: str, options: dict[str, Any], unit: str, needs: tuple[str, ...]
):
    row = METHODS[name].for_options(options_of(name, **options))
    assert (row.unit, row.needs) == (unit, needs)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ties", {"densitty": 0.2}),
        ("ties", {"density": 0.0}),
        ("dare_linear", {"density": (0.5, 1.5)}),
        ("della_linear", {"dialect": "peft"}),
        ("breadcrumbs", {"gamma": 1.0}),
        ("nuslerp", {"vectors": "rows"}),
    ],
)
def test_what_a_method_does_not_know_is_refused(name: str, options: dict[str, Any]):
    with pytest.raises(ValidationError):
        options_of(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "cancels"),
    [
        ("ties", {}, False),
        ("ties", {"dialect": "mergekit"}, True),
        ("ties", {"dialect": "mergekit", "disjoint": "sum"}, False),
        ("dare_ties", {"dialect": "mergekit"}, False),
        ("dare_ties", {"disjoint": "weighted_mean"}, True),
        ("della_ties", {"dialect": "mergekit"}, True),
        ("breadcrumbs_ties", {"dialect": "mergekit"}, False),
    ],
)
def test_a_weighted_mean_cancels_the_coefficients_scale(
    name: str, options: dict[str, Any], cancels: bool
):
    row = METHODS[name].for_options(options_of(name, **options))
    assert row.weights_sum_to_one == cancels
