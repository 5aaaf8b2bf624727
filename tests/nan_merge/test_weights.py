import pytest
from pydantic import ValidationError

from nan_merge.recipe import ModelReference
from nan_merge.weights import LayerPlace, Rule, count_layers, layer_places, weight_of


def rule(value: float | tuple[float, ...], pattern: str = "*") -> Rule:
    return Rule(filter=pattern, value=value)


def test_a_number_weighs_every_tensor_alike():
    assert weight_of(0.3, "model.layers.5.mlp.weight", 5, 8) == 0.3
    assert weight_of(0.3, "lm_head.weight") == 0.3


@pytest.mark.parametrize(
    ("layer", "expected"), [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
)
def test_two_numbers_are_a_straight_line_from_first_to_last_layer(layer, expected):
    assert weight_of((0.0, 1.0), "w", layer, 5) == expected


@pytest.mark.parametrize(("layer", "expected"), [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.4), (4, 0.3)])
def test_more_numbers_stand_at_equal_distances(layer, expected):
    assert weight_of((0.0, 0.5, 0.3), "w", layer, 5) == pytest.approx(expected, abs=1e-15)


def test_outside_the_layers_the_first_number_holds():
    assert weight_of((0.2, 0.9), "model.embed_tokens.weight") == 0.2


def test_the_only_layer_takes_the_last_number():
    assert weight_of((0.2, 0.9), "layers.0.w", 0, 1) == 0.9


def test_a_gradient_of_one_number_is_that_number():
    assert weight_of((0.4,), "w", 2, 5) == 0.4


def test_the_first_rule_that_fits_counts():
    weight = (rule(0.5, "*mlp*"), rule((0.0, 1.0), "*self_attn*"), rule(0.1))
    assert weight_of(weight, "layers.2.mlp.up_proj.weight", 2, 3) == 0.5
    assert weight_of(weight, "layers.1.self_attn.q_proj.weight", 1, 3) == 0.5
    assert weight_of(weight, "layers.1.input_layernorm.weight", 1, 3) == 0.1


def test_where_no_rule_fits_the_base_is_kept():
    assert weight_of((rule(0.5, "*mlp*"),), "layers.0.self_attn.weight", 0, 3) == 0.0


def test_layers_are_told_from_the_first_number_of_a_name():
    places = layer_places(
        ["model.embed", "model.layers.0.w", "model.layers.11.experts.3.w", "visual.blocks.1.w"]
    )
    assert places["model.embed"] == LayerPlace(None, 0)
    assert places["model.layers.11.experts.3.w"] == LayerPlace(11, 12)
    assert places["visual.blocks.1.w"] == LayerPlace(1, 2)  # a stack of its own
    assert count_layers(places) == 12


@pytest.mark.parametrize("weight", [1, 0.5, [0, 0.3, 1], [{"value": 1}], [{"value": [0, 1]}]])
def test_recipes_take_every_form(weight):
    ModelReference.model_validate({"path": "a", "weight": weight})


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([], "empty list"),
        ([{"filter": "*mlp*", "value": []}], "empty list"),
        ([1.0, {"value": 1.0}], "numbers and rules in one list"),
        ([{"value": 1.0}, {"filter": "*mlp*", "value": 2.0}], "rule 0 fits every tensor"),
        ([{"filtr": "*mlp*", "value": 2.0}], "filtr"),
        ([{"filter": "*mlp*"}], "value"),
        (float("nan"), "finite"),
    ],
)
def test_a_weight_that_means_nothing_is_refused(weight, message):
    with pytest.raises(ValidationError, match=message):
        ModelReference.model_validate({"path": "a", "weight": weight})
