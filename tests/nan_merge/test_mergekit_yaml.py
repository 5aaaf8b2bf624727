"""mergekit files as users write them, and the recipes that they become."""

from pathlib import Path

import pytest

from nan_merge.coefficients import compute_coefficients
from nan_merge.mergekit_parameters import METHODS_OF_MERGEKIT, glob_of
from nan_merge.mergekit_yaml import is_mergekit, translate
from nan_merge.methods import METHODS
from nan_merge.recipe_file import load_recipe
from nan_merge.tensor_options import options_by_tensor
from nan_merge.yaml_text import parse_document

TIES = """
models:
  - model: meta-llama/Llama-3.1-8B
  - model: acme/Llama-3.1-8B-math
    parameters:
      weight: 0.6
      density: 0.4
  - model: acme/Llama-3.1-8B-code@v2
    parameters:
      weight: [0.1, 0.9]
      density: 0.7
merge_method: ties
base_model: meta-llama/Llama-3.1-8B
parameters:
  int8_mask: true
dtype: bfloat16
"""
SLERP = """
slices:
  - sources:
      - model: acme/chat-7b
        layer_range: [0, 32]
      - model: acme/tutor-7b
        layer_range: [0, 32]
merge_method: slerp
base_model: acme/chat-7b
parameters:
  t:
    - filter: self_attn
      value: [0, 0.25, 1]
    - filter: mlp
      value: 0.75
    - value: 0.5
dtype: float16
"""
LINEAR = """
models:
  - model: ./soup-a
    parameters: {weight: 1.0}
  - model: ./soup-b
    parameters: {weight: 3.0}
merge_method: linear
dtype: float32
out_dtype: bfloat16
"""


def translated(text: str) -> dict:
    return translate(parse_document(text, "merge.yml")).value


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def load(text: str, *overrides: str):
        Path("merge.yml").write_text(text)
        return load_recipe(Path("merge.yml"), overrides)

    return load


def test_either_format_is_told_from_its_keys(load):
    assert is_mergekit(parse_document(TIES, "x"))
    assert not is_mergekit(parse_document("models: [a]\nmethod: average\n", "x"))
    assert not is_mergekit(parse_document("- 1\n", "x"))
    assert load("models: [./a, ./b]\nmethod: average\n").method.name == "average"


def test_ties_becomes_mergekits_dialect_with_its_defaults_written_out():
    assert translated(TIES) == {
        "base": "meta-llama/Llama-3.1-8B",
        "models": [
            {"path": "acme/Llama-3.1-8B-math", "name": "Llama-3.1-8B-math", "weight": 0.6},
            {
                "path": "acme/Llama-3.1-8B-code@v2",
                "name": "Llama-3.1-8B-code@v2",
                "weight": [0.1, 0.9],
            },
        ],
        "method": {
            "name": "ties",
            "dialect": "mergekit",
            "density": [0.4, 0.7],
            "disjoint": "weighted_mean",
            "lambda": 1.0,
        },
        "dtype": "bfloat16",
    }


def test_slerp_becomes_weights_of_one_minus_t_and_t():
    recipe = translated(SLERP)
    assert "base" not in recipe
    assert recipe["method"] == {"name": "slerp"}
    assert recipe["num_layers"] == 32
    first, second = recipe["models"]
    assert (first["path"], second["path"]) == ("acme/chat-7b", "acme/tutor-7b")
    assert second["weight"] == [
        {"filter": "*self_attn*", "value": [0, 0.25, 1]},
        {"filter": "*mlp*", "value": 0.75},
        {"value": 0.5},
    ]
    assert [rule["value"] for rule in first["weight"]] == [[1, 0.75, 0], 0.25, 0.5]


def test_slerp_starts_from_the_base_model_wherever_it_is_listed():
    text = "models: [{model: b}, {model: a}]\nmerge_method: slerp\nbase_model: a\n"
    models = translated(text + "parameters: {t: 0.25}\n")["models"]
    assert [(model["path"], model["weight"]) for model in models] == [("a", 0.75), ("b", 0.25)]


def test_a_translated_slerp_gives_coefficients_layer_by_layer(load):
    names = [f"model.layers.{i}.{kind}.w" for i in range(32) for kind in ("self_attn", "mlp")]
    table = compute_coefficients(load(SLERP), ["model.norm.weight", *names], {})
    assert table.for_tensor("model.norm.weight") == (0.5, 0.5)
    assert table.for_tensor("model.layers.0.self_attn.w") == (1.0, 0.0)
    assert table.for_tensor("model.layers.31.self_attn.w") == (0.0, 1.0)
    assert table.for_tensor("model.layers.7.mlp.w") == (0.25, 0.75)


def test_linear_divides_by_the_sum_of_weights_and_takes_the_output_type(load):
    recipe = load(LINEAR)
    assert (recipe.method.name, recipe.base, recipe.dtype) == ("average", None, "bfloat16")
    assert compute_coefficients(recipe, ["w"], {}).for_tensor("w") == (0.25, 0.75)


@pytest.mark.parametrize("name", sorted(METHODS_OF_MERGEKIT))
def test_every_shared_method_passes_the_schema(load, name):
    ours = METHODS[METHODS_OF_MERGEKIT[name].name]
    models = "".join(
        f"- {{model: ./m{i}, parameters: {{weight: 0.5}}}}\n"
        for i in range(1 if name in ("slerp", "passthrough") else 2)
    )
    base = "" if name == "passthrough" else "base_model: ./base\n"
    parameters = "t: 0.3" if name == "slerp" else "weight: 0.5"
    recipe = load(f"models:\n{models}merge_method: {name}\n{base}parameters: {{{parameters}}}\n")
    assert isinstance(recipe.method, ours.options)
    assert getattr(recipe.method, "dialect", "mergekit") == "mergekit"


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("dare_ties", "density: 0.3", {"density": 0.3, "disjoint": "sum", "rescale": True}),
        ("dare_ties", "normalize: true", {"disjoint": "weighted_mean"}),
        ("dare_linear", "rescale: false", {"density": 1.0, "rescale": False}),
        ("ties", "normalize: false, lambda: 0.7", {"disjoint": "sum", "lambda": 0.7}),
        ("della", "density: 0.6, epsilon: 0.1", {"density": 0.6, "epsilon": 0.1}),
        ("della_linear", "density: 0.6", {"epsilon": 0.15}),
        ("breadcrumbs", "gamma: 0.02", {"density": 1.0, "gamma": 0.02}),
        ("breadcrumbs_ties", "density: 0.9", {"density": 0.9, "gamma": 0.01, "disjoint": "sum"}),
        ("sce", "select_topk: 0.2", {"density": 0.2}),
        ("model_stock", "filter_wise: true", {"vectors": "row"}),
        ("nuslerp", "nuslerp_flatten: false", {"vectors": "row"}),
        ("nuslerp", "nuslerp_flatten: false, nuslerp_row_wise: true", {"vectors": "column"}),
    ],
)
def test_parameters_become_options(name, parameters, expected):
    text = f"models: [{{model: a}}, {{model: b}}]\nmerge_method: {name}\nbase_model: c\n"
    method = translated(f"{text}parameters: {{weight: 0.5, {parameters}}}\n")["method"]
    assert {key: method[key] for key in expected} == expected


def test_lambda_of_a_plain_sum_is_a_factor_on_coefficients(load):
    text = "models: [{model: a}]\nmerge_method: task_arithmetic\nbase_model: c\n"
    recipe = load(text + "parameters: {weight: 0.5, lambda: 0.4}\n")
    assert compute_coefficients(recipe, ["w"], {}).for_tensor("w") == (pytest.approx(0.2),)


def test_normalize_of_a_plain_sum_divides_the_weights():
    text = "models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 3}}]\n"
    text += "merge_method: task_arithmetic\nbase_model: c\nparameters: {normalize: true}\n"
    assert [model["weight"] for model in translated(text)["models"]] == [0.25, 0.75]


def test_the_more_specific_parameter_counts_and_filters_fall_through():
    text = """
slices:
  - sources:
      - {model: a, layer_range: [0, 4], parameters: {weight: [{filter: mlp, value: 0.1}]}}
      - {model: b, layer_range: [0, 4]}
      - {model: c, layer_range: [0, 4], parameters: {weight: 0.7}}
    parameters: {weight: [{filter: attn, value: 0.2}]}
merge_method: task_arithmetic
base_model: base
parameters: {weight: 0.3, density: 0.5}
"""
    first, second, third = translated(text)["models"]
    assert first["weight"] == [
        {"filter": "*mlp*", "value": 0.1},
        {"filter": "*attn*", "value": 0.2},
        {"value": 0.3},
    ]
    assert second["weight"] == [{"filter": "*attn*", "value": 0.2}, {"value": 0.3}]
    assert third["weight"] == 0.7


def test_a_base_that_an_average_names_without_listing_is_merged_too():
    text = "models: [{model: a}]\nmerge_method: linear\nbase_model: c\n"
    recipe = translated(text + "parameters: {weight: 1.0}\n")
    assert [model["path"] for model in recipe["models"]] == ["a", "c"]


DENSITIES = """
merge_method: breadcrumbs
base_model: base
models:
  - {model: a, parameters: {weight: 1, density: [1, 0.2]}}
  - model: b
    parameters:
      weight: 1
      density: [{filter: mlp, value: 0.3}]
      gamma: [{filter: attn, value: [0, 0.1]}]
"""


def test_density_and_gamma_keep_their_gradients_and_filters(load):
    method = translated(DENSITIES)["method"]
    # Where no filter fits, mergekit's defaults hold: density 1 and gamma 0.01.
    assert method["density"] == [[1, 0.2], [{"filter": "*mlp*", "value": 0.3}, {"value": 1.0}]]
    assert method["gamma"] == [0.01, [{"filter": "*attn*", "value": [0, 0.1]}, {"value": 0.01}]]
    names = ["embed", "layers.0.mlp", "layers.1.mlp", "layers.1.attn"]
    found = options_by_tensor(load(DENSITIES).method, names, 2)
    assert [found[name].density for name in names] == [(1, 1), (1, 0.3), (0.2, 0.3), (0.2, 1)]
    assert found["layers.1.attn"].gamma == (0.01, 0.1)


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        ("[1, 0.2]", [{"value": [1, 0.2]}]),
        (
            "[{filter: mlp, value: 0.3}, {value: 0.5}]",
            [{"filter": "*mlp*", "value": 0.3}, {"value": 0.5}],
        ),
    ],
)
def test_a_gradient_or_filters_for_every_model_are_written_once(load, density, expected):
    text = "merge_method: ties\nbase_model: c\nmodels: [{model: a}, {model: b}]\n"
    text += f"parameters: {{weight: 1, density: {density}}}\n"
    assert translated(text)["method"]["density"] == expected
    load(text)


def test_epsilon_may_differ_by_model_and_layer(load):
    text = "merge_method: della\nbase_model: c\nmodels: [{model: a}, {model: b}]\n"
    text += "parameters: {weight: 1, density: 0.5, epsilon: [{filter: mlp, value: [0.1, 0.3]}]}\n"
    found = options_by_tensor(load(text).method, ["l.0.mlp", "l.1.mlp", "l.1.attn"], 2)
    assert [own.epsilon for own in found.values()] == [(0.1, 0.1), (0.3, 0.3), (0.15, 0.15)]


def test_passthrough_scales_by_name():
    text = "models:\n- model: a\n  parameters: {scale: [{filter: o_proj, value: 0}, {value: 1}]}\n"
    recipe = translated(text + "merge_method: passthrough\n")
    expected = [{"filter": "*o_proj*", "value": 0}, {"value": 1}]
    assert recipe["models"][0]["weight"] == expected


def test_models_may_be_written_out_in_full():
    model = "{model: {path: org/m, revision: abc}, lora: {path: org/adapter}}"
    text = f"models: [{{model: {model}}}]\nmerge_method: task_arithmetic\nbase_model: org/m\n"
    recipe = translated(text + "parameters: {weight: 1}\n")
    assert recipe["models"][0]["path"] == "org/m@abc+org/adapter"


def test_models_of_the_same_last_name_are_called_by_their_whole_path():
    text = "models: [{model: x/m}, {model: y/m}]\nmerge_method: linear\nparameters: {weight: 1}\n"
    assert [model["name"] for model in translated(text)["models"]] == ["x/m", "y/m"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tokenizer_source: base\n", None),
        ("tokenizer_source: c\n", None),
        ("tokenizer_source: union\n", "union"),
        ("tokenizer_source: x/a\n", "a"),
        ("tokenizer: {source: union}\n", "union"),
    ],
)
def test_a_tokenizer_is_named_unless_it_is_the_bases(text, expected):
    merge = "models: [{model: x/a}]\nmerge_method: task_arithmetic\nbase_model: c\n"
    assert translated(merge + "parameters: {weight: 1}\n" + text).get("tokenizer") == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("mlp", "*mlp*"), ("*", "*"), (None, "*"), ("a[0]*", "*a[[]0][*]*")]
)
def test_a_filter_fits_names_that_contain_it(text, expected):
    assert glob_of(text) == expected


def test_overrides_are_in_the_words_of_recipes(load):
    recipe = load(TIES, "method.density=0.9", "models.0.weight=0.25", "seed=3")
    assert (recipe.method.density, recipe.models[0].weight, recipe.seed) == (0.9, 0.25, 3)
