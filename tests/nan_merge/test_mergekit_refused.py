"""What is wrong with a mergekit file, or not supported, is named with its line."""

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nan_merge.errors import ConfigError
from nan_merge.mergekit_yaml import translate
from nan_merge.recipe_file import load_recipe
from nan_merge.yaml_text import parse_document


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        translate(parse_document(text, "merge.yml"))
    return str(caught.value).splitlines()


ARITHMETIC = "merge_method: task_arithmetic\nbase_model: b\n"
MODEL = "models: [{model: a, parameters: {weight: 1}}]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            ARITHMETIC + "models: [{model: a, parameters: {weight: 1, densitty: 0.5}}]\n",
            "3:45: models.0.parameters.densitty: unknown key, expected one of",
        ),
        (
            ARITHMETIC + MODEL + "paramters: {}\n",
            "4:1: paramters: unknown key, expected one of",
        ),
        (ARITHMETIC + "models: [{model: a}]\n", "3:10: models.0: lacks a `weight`; add"),
        (MODEL + "merge_method: ties\n", "2:1: merge_method: this method needs a `base_model`"),
        (
            MODEL + "merge_method: karcher\n",
            "2:1: merge_method: 'karcher' is not supported; the methods are linear, slerp,",
        ),
        (
            ARITHMETIC + MODEL + "chat_template: chatml\n",
            "4:1: chat_template: is not supported: the result takes over",
        ),
        (
            ARITHMETIC + MODEL + "tokenizer: {source: union, pad_to_multiple_of: 64}\n",
            "4:28: tokenizer.pad_to_multiple_of: is not supported",
        ),
        (
            ARITHMETIC + "models: [{model: a, parameters: {weight: 1, lambda: 2}}]\n",
            "3:45: models.0.parameters.lambda: is not read under a model; move it to `parameters`",
        ),
        *(
            (
                f"merge_method: {method}\nbase_model: b\n"
                + MODEL
                + f"parameters: {{{key}: {value}}}\n",
                f"4:14: parameters.{key}: gradients and filters are not taken for {key}; "
                f"give {right}",
            )
            for method, key, right in (
                ("ties", "normalize", "true or false"),
                ("ties", "lambda", "one number"),
                ("sce", "select_topk", "one number"),
            )
            for value in (
                "[1, 0]",
                "[{filter: mlp, value: 1}, {value: 0}]",
                "{filter: mlp, value: 1}",
            )
        ),
        *(
            (
                f"merge_method: {method}\nbase_model: b\n"
                f"models: [{{model: a, parameters: {{weight: 1, {key}: [1, 0]}}}}]\n",
                f"3:45: models.0.parameters.{key}: is not read under a model; move it to ",
            )
            for method, key in (("ties", "normalize"), ("ties", "lambda"), ("sce", "select_topk"))
        ),
        (
            ARITHMETIC + MODEL + "---\n" + MODEL,
            "4:1: another document begins (`---`), expected one; give each merge a file of its own",
        ),
        (
            ARITHMETIC + MODEL + "parameters: {lambda: [1, 0.1]}\n",
            "4:14: parameters.lambda: gradients and filters are not taken for lambda; give one",
        ),
        (
            "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 24]}]\n"
            "- sources: [{model: b, layer_range: [20, 40]}]\n",
            "2:1: slices: taking part of a model's layers, or stacking layers, is not supported",
        ),
        (
            ARITHMETIC + "parameters: {weight: 1}\n"
            "slices:\n- sources:\n  - {model: a, layer_range: [8, 24]}\n",
            "6:16: slices.0.sources.0.layer_range: taking part of a model's layers",
        ),
        (
            MODEL + "merge_method: linear\nmodules: {text: {}}\n",
            "3:1: modules: models of several modules are not supported",
        ),
        (
            MODEL.replace("1", "2") + "merge_method: linear\nparameters: {normalize: false}\n",
            "3:14: parameters.normalize: false is supported only for plain weights",
        ),
        (
            "merge_method: slerp\nbase_model: a\nmodels: [{model: a}, {model: b}]\n"
            "parameters:\n  t: [{filter: mlp, value: 0.5}]\n",
            "5:3: parameters.t: tensors that no filter fits have no `t`; add a last rule",
        ),
        (
            ARITHMETIC + "models: [{model: a, parameters: {weight: much}}]\n",
            "3:34: models.0.parameters.weight: found 'much', expected a number, a list of numbers",
        ),
    ],
)
def test_what_is_not_supported_is_named_with_its_line(text, expected):
    (line,) = problems(text)
    assert line.startswith(f"merge.yml:{expected}")


def test_a_value_out_of_range_is_reported_at_its_place(tmp_path):
    text = ARITHMETIC.replace("task_arithmetic", "ties") + MODEL
    path = Path(tmp_path, "merge.yml")
    path.write_text(text + "parameters: {density: 1.5}\n")
    with pytest.raises(ConfigError, match=r"merge\.yml:4:14: method\.density: found 1\.5"):
        load_recipe(path)


def test_all_problems_are_told_at_once():
    lines = problems(ARITHMETIC + "models: [{model: a}, {modle: b}]\nparamters: {}\ndtyp: x\n")
    assert [line.split(":")[1] for line in lines] == ["3", "3", "3", "4", "5"]


WORDS = st.sampled_from(
    [
        "model",
        "models",
        "a",
        "weight",
        "filter",
        "value",
        "sources",
        "layer_range",
        "source",
        "*",
        "merge_method",
        "ties",
        "slerp",
        "linear",
        "base_model",
        "parameters",
        "t",
        "density",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats(0, 1) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
SECTIONS = [
    "models",
    "slices",
    "parameters",
    "base_model",
    "tokenizer",
    "tokenizer_source",
    "dtype",
]


@settings(max_examples=300, deadline=None)
@given(
    method=st.sampled_from(["ties", "slerp", "linear", "task_arithmetic", "sce", "passthrough"]),
    content=st.dictionaries(st.sampled_from(SECTIONS), VALUES, max_size=5),
    parameters=st.dictionaries(WORDS, VALUES, max_size=3),
)
def test_garbage_raises_nothing_but_config_errors(method, content, parameters):
    models = [{"model": "a", "parameters": parameters}, {"model": "b"}]
    text = yaml.safe_dump({"models": models, **content, "merge_method": method})
    with contextlib.suppress(ConfigError):
        translate(parse_document(text, "merge.yml"))
