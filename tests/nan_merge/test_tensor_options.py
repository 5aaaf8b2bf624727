"""Options of a method that differ by tensor: what a recipe may say, and what methods get."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from nan_merge.errors import ConfigError, IncompatibleError
from nan_merge.merge import merge_checkpoint
from nan_merge.methods import METHODS
from nan_merge.methods.method import per_model
from nan_merge.plan import plan_merge
from nan_merge.recipe import MergeRecipe
from nan_merge.recipe_file import load_recipe
from nan_merge.tensor_options import options_by_tensor

NAMES = ["embed.weight", "layers.0.mlp", "layers.0.attn", "layers.1.mlp", "layers.2.attn"]


def options(name: str, **values):
    return METHODS[name].options.model_validate({"name": name, "dialect": "mergekit", **values})


def densities(density, num_models: int = 2, name: str = "ties") -> dict[str, tuple[float, ...]]:
    found = options_by_tensor(options(name, density=density), NAMES, num_models)
    return {tensor: own.density for tensor, own in found.items()}


@pytest.mark.parametrize("density", [0.3, [0.3, 0.5]])
def test_plain_numbers_stay_as_they_are(density):
    assert densities(density) == {}


def test_a_gradient_of_one_model_and_a_number_of_the_other():
    assert densities([[0.1, 0.9], 0.5]) == {
        "embed.weight": (0.1, 0.5),
        "layers.0.mlp": (0.1, 0.5),
        "layers.0.attn": (0.1, 0.5),
        "layers.1.mlp": (0.5, 0.5),
        "layers.2.attn": (0.9, 0.5),
    }


def test_rules_alone_hold_for_every_model_and_the_default_where_none_fits():
    found = densities([{"filter": "*mlp", "value": [0.2, 0.4]}], num_models=3)
    assert found["layers.0.mlp"] == (0.2, 0.2, 0.2)
    assert found["layers.1.mlp"] == pytest.approx((0.3, 0.3, 0.3))
    assert found["layers.2.attn"] == (0.2, 0.2, 0.2)  # the default density of TIES


def test_one_gradient_for_every_model_is_a_rule_that_fits_all():
    assert densities([{"value": [0.1, 0.9]}])["layers.2.attn"] == (0.9, 0.9)


def test_rules_of_one_model_stand_in_a_list_of_their_own():
    found = densities([[{"filter": "*mlp", "value": 0.3}, {"value": 0.6}], [0.1, 0.9]])
    assert found["layers.1.mlp"] == (0.3, 0.5)
    assert found["layers.2.attn"] == (0.6, 0.9)


def test_tensors_with_the_same_numbers_share_one_object():
    found = options_by_tensor(options("ties", density=[{"value": [0.1, 0.9]}]), NAMES, 2)
    assert found["embed.weight"] is found["layers.0.mlp"]
    assert found["embed.weight"] is not found["layers.1.mlp"]


def test_several_options_are_resolved_together():
    own = options("breadcrumbs", density=[[0.1, 0.9], 0.5], gamma=[{"filter": "*attn", "value": 0}])
    found = options_by_tensor(own, NAMES, 2)
    assert (found["layers.2.attn"].density, found["layers.2.attn"].gamma) == ((0.9, 0.5), (0, 0))
    assert found["layers.1.mlp"].gamma == (0.01, 0.01)


def test_chances_of_della_are_checked_in_every_tensor():
    own = options("della_linear", density=[{"value": [0.5, 0.9]}], epsilon=0.15)
    with pytest.raises(IncompatibleError, match=r"tensor layers\.2\.attn: density 0\.9 plus and m"):
        options_by_tensor(own, NAMES, 2)


def test_methods_refuse_what_was_not_resolved():
    with pytest.raises(ValueError, match="must be resolved for a tensor first"):
        per_model(options("ties", density=[[0.1, 0.9], 0.5]).density, 2)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("density: [[0.1, 1.5], 0.5]", "found 1.5 in the list, expected a number less than or"),
        ("density: [{value: 0}]", "found 0 in the list, expected a number greater than 0"),
        ("density: [{filter: a, value: 1}, 0.5]", "rules and other entries in one list"),
        ("density: [[], 0.5]", "an empty list"),
        ("density: [{value: 0.5}, {filter: a, value: 1}]", "rule 0 fits every tensor"),
        ("density: [{filtr: a, value: 1}]", "density.0.filtr: unknown key"),
        ("density: [[0.1, 0.9], 0.5, 1]", "has 3 entries for 2 models"),
        ("density: [[0.1, 0.9]]", "has 1 entries for 2 models"),
        ("density: [0.1, 0.2, 0.3]", "has 3 numbers for 2 models; give one number, or one each"),
    ],
)
def test_a_list_that_means_nothing_is_refused_with_its_reason(tmp_path, method, message):
    path = Path(tmp_path, "r.yaml")
    models = "base: ./b\nmodels: [./m1, ./m2]\n"
    path.write_text(f"{models}method: {{name: ties, dialect: mergekit, {method}}}\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("dialect", ["paper", "fusionbench"])
def test_a_share_of_the_whole_model_cannot_differ_by_tensor(dialect):
    method = {"name": "ties", "dialect": dialect, "density": [{"filter": "*mlp*", "value": 0.3}]}
    with pytest.raises(ValidationError, match="largest elements are those of the whole model"):
        MergeRecipe.model_validate({"base": "b", "models": ["m"], "method": method})


def test_the_preflight_finds_a_tensor_that_the_numbers_do_not_suit(family):
    method = {"name": "della_linear", "density": [{"filter": "layers.1.*", "value": 0.95}]}
    recipe = MergeRecipe.model_validate(
        {"base": family["base"], "models": [family["math"]], "method": method}
    )
    with pytest.raises(IncompatibleError, match=r"tensor layers\.1\.weight: density 0\.95"):
        plan_merge(recipe)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "ties", "dialect": "mergekit"},
        {"name": "ties", "dialect": "peft"},
        {"name": "dare_linear"},
        {"name": "dare_ties"},
        {"name": "della_linear", "epsilon": 0.05},
        {"name": "breadcrumbs"},
    ],
    ids=lambda method: f"{method['name']}-{method.get('dialect', 'paper')}",
)
def test_every_tensor_is_merged_as_by_a_recipe_of_its_numbers(family, tmp_path, method):
    """Tensor by tensor, the same bytes as merges whose density is one number per model."""

    def merged(name: str, density) -> dict[str, torch.Tensor]:
        models = [family["math"], family["code"]]
        content = {"base": family["base"], "models": models}
        recipe = MergeRecipe.model_validate(content | {"method": {**method, "density": density}})
        merge_checkpoint(recipe, tmp_path / name, workers=2 if name == "mixed" else 1)
        return load_file(tmp_path / name / "model.safetensors")

    mixed = merged("mixed", [[0.3, 0.8], [{"filter": "*bias", "value": 0.9}, {"value": 0.6}]])
    first, last = merged("first", [0.3, 0.6]), merged("last", [0.8, 0.6])
    bias = merged("bias", [0.3, 0.9])
    for name in ("embed.weight", "layers.0.weight", "scale"):
        assert torch.equal(mixed[name], first[name])
    assert torch.equal(mixed["layers.0.bias"], bias["layers.0.bias"])
    assert torch.equal(mixed["layers.10.weight"], last["layers.10.weight"])
    # Layer 1 of 11 lies a tenth of the way from 0.3 to 0.8.
    between = merged("between", [0.35, 0.6])["layers.1.weight"]
    assert torch.equal(mixed["layers.1.weight"], between)
    assert not torch.equal(between, first["layers.1.weight"])
