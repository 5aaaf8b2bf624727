import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

from nan_merge.errors import ConfigError
from nan_merge.methods import METHODS
from nan_merge.recipe import MergeRecipe
from nan_merge.schema import StrictModel
from nan_merge.yaml_config import load_config, schema_json

GOOD = "base: ./b\nmodels: [./m1, ./m2]\nmethod: ties\n"


def keys(schema: type[StrictModel]) -> str:
    return ", ".join(info.alias or name for name, info in schema.model_fields.items())


RECIPE_KEYS = keys(MergeRecipe)
TIES_KEYS = keys(METHODS["ties"].options)
*_FIRST_METHODS, _LAST_METHOD = [repr(name) for name in METHODS]
METHOD_NAMES = f"{', '.join(_FIRST_METHODS)} or {_LAST_METHOD}"


def test_short_forms_are_read(load):
    recipe = load(GOOD + "coefficients: [0.3, 1e-3]\n")
    assert [model.name for model in recipe.models] == ["m1", "m2"]
    assert recipe.method.name == "ties"
    assert recipe.coefficients.values == (0.3, 0.001)


class Plain(StrictModel):
    word: str = ""
    flag: bool = True
    number: float = 0
    count: int = 0
    names: dict[str, int] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("number: 1e-3", "number", 0.001),
        ("number: 1E5", "number", 1e5),
        ("number: .5", "number", 0.5),
        ("count: 0x1F", "count", 31),
        ("count: 0o17", "count", 15),
        ("count: 017", "count", 17),
        ("word: yes", "word", "yes"),
        ("word: off", "word", "off"),
        ("word: 2020-01-01", "word", "2020-01-01"),
        ("word: 1:30", "word", "1:30"),
        ("word: '1e-3'", "word", "1e-3"),
        ("flag: false", "flag", False),
        ("names: {no: 1, 7: 2}", "names", {"no": 1, "7": 2}),
        ("\ufeffcount: 1", "count", 1),
    ],
)
def test_scalars_are_those_of_yaml_1_2(load, text, field, value):
    assert getattr(load(text, schema=Plain), field) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "base: ./b\nmodels: [./a]\nmethod: {name: ties, densty: 0.3}\n",
            [
                f"r.yaml:3:22: method.densty: unknown key, expected one of {TIES_KEYS}; "
                "did you mean 'density'?"
            ],
        ),
        (
            "base: ./b\nmodels: [./a]\nmethod: tise\n",
            [f"r.yaml:3:1: method: found 'tise', expected {METHOD_NAMES}; did you mean 'ties'?"],
        ),
        (
            "base: ./b\nmodels: [./a]\nmethod: {name: tise}\n",
            [
                f"r.yaml:3:10: method.name: found 'tise', expected {METHOD_NAMES}; "
                "did you mean 'ties'?"
            ],
        ),
        (
            "base: ./b\nmodels: [./a]\nmethod: {name: TIES}\n",
            [
                f"r.yaml:3:10: method.name: found 'TIES', expected {METHOD_NAMES}; "
                "did you mean 'ties'?"
            ],
        ),
        (
            "models: [./a, ./b]\nmethod: linear\n",
            [
                f"r.yaml:2:1: method: found 'linear', expected {METHOD_NAMES}; "
                "'linear' is called 'average' here"
            ],
        ),
        (
            "base: ./b\nmodels: [./a]\nmethod: {name: NAN}\n",
            [
                f"r.yaml:3:10: method.name: found 'NAN', expected {METHOD_NAMES}; NAN makes "
                "coefficients, for any method: write `coefficients: nan` beside it"
            ],
        ),
        (
            "base: ./b\nmodels: [./a]\nmethod: {density: 0.1}\n",
            ["r.yaml:3:1: method: found a section without `name`, expected `name` to tell which"],
        ),
        (
            GOOD + "coefficients: {scale: papr}\n",
            [
                "r.yaml:4:16: coefficients.scale: found 'papr', expected 'paper', 'norm' or "
                "'count' or a number; did you mean 'paper'?"
            ],
        ),
        (
            GOOD + "coefficients: {scale: -1}\n",
            [
                "r.yaml:4:16: coefficients.scale: found -1, expected 'paper', 'norm' or 'count' "
                "or a number above 0.0"
            ],
        ),
        (
            "models: [{modl: a}]\nmethod: average\n",
            [
                "r.yaml:1:10: models.0.path: is missing, expected a value",
                "r.yaml:1:11: models.0.modl: unknown key, expected one of path, name, weight, "
                "statistics",
            ],
        ),
        (
            GOOD + "coefficients: {lambada: 1}\n",
            [
                "r.yaml:4:16: coefficients.lambada: unknown key, expected one of source, values, "
                "table, target, scope, include, exclude, power, scale, lambda, zero_norm; "
                "did you mean 'lambda'?"
            ],
        ),
        (
            GOOD + "coefficients: [a, 0.3]\n",
            ["r.yaml:4:1: coefficients.values.0: found 'a', expected a number"],
        ),
        (
            GOOD + "coefficients: kurtosis\n",
            [
                "r.yaml:4:1: coefficients.source: found 'kurtosis', expected 'nan', 'rms', "
                "'variance', 'metagpt', 'uniform', 'matched', 'fixed' or 'table'"
            ],
        ),
        (
            GOOD + "coefficients: {source: metagpt, target: weights}\n",
            ["r.yaml:4:1: coefficients: `source: metagpt` is about `target: task_vector` alone"],
        ),
        (
            "base: ./b\nmethod: ties\nmodels:\n- ./m\n- {path: ./a, weight: [0, x]}\n",
            [
                "r.yaml:5:27: models.1.weight.1: found 'x', expected a number or a section of keys "
                "and values"
            ],
        ),
        (
            "base: ./b\nmethod: ties\nmodels:\n- ./m\n- path: ./a\n"
            "  weight:\n  - {filtr: a, value: 1}\n",
            [
                "r.yaml:7:6: models.1.weight.0.filtr: unknown key, expected one of filter, value; "
                "did you mean 'filter'?"
            ],
        ),
        (
            "base: ./b\nmethod: ties\nmodels:\n- ./m\n- {path: ./a, weight: [0, {value: 1}]}\n",
            [
                "r.yaml:5:15: models.1.weight: numbers and rules in one list; expected numbers "
                "alone (a gradient over layers), or `{filter: ..., value: ...}` alone"
            ],
        ),
        (
            "base: ./b\nmodels: [./m1, ./m2]\nmethod: {name: ties, density: [0.1, 0.2, 0.3]}\n",
            ["r.yaml:1:1: method.density has 3 numbers for 2 models; give one number, or one each"],
        ),
        (
            "models: [./m1, ./m2, ./m3]\nmethod: slerp\nconfig: m4\n"
            "coefficients: {source: fixed, values: [1], scale: norm}\n",
            [
                "r.yaml:1:1: 1 coefficients for 3 models; give one each",
                "r.yaml:1:1: method slerp merges exactly 2 models, not 3",
                "r.yaml:1:1: method slerp with these coefficients needs a `base`",
                "r.yaml:1:1: config: 'm4' is neither `base` nor a model of this recipe "
                "(m1, m2, m3); for a folder or hub id write `{path: m4}`",
            ],
        ),
        (GOOD + "base: 5\n", ["r.yaml:4:1: base: found twice, first on line 1; expected once"]),
        (
            GOOD.replace("./b", "5"),
            ["r.yaml:1:1: base: found 5, expected text; put it in quotes"],
        ),
        (
            "base: ./b\nmethod: ties\nmodels: [x, {path: 1}]\nsead: 1\nseed: 1.5\n",
            [
                "r.yaml:3:14: models.1.path: found 1, expected text; put it in quotes",
                f"r.yaml:4:1: sead: unknown key, expected one of {RECIPE_KEYS}; "
                "did you mean 'seed'?",
                "r.yaml:5:1: seed: found 1.5, expected a whole number",
            ],
        ),
        ("base: ./b\nmethod: ties\n", ["r.yaml:1:1: models: is missing, expected a value"]),
        (
            "base: ./b\nmethod: ties\nmodels: [./a, c/a]\n",
            ["r.yaml:3:1: models: two models are both called a; give one of them a `name`"],
        ),
        *(
            (
                f"base: ./b\nmethod: ties\nmodels: [./a, ./{word}]\nmodules: {{x: a}}\n",
                [
                    f"r.yaml:1:1: a model is called `{word}`, which under `modules` means "
                    f"{meaning}; give it another `name`"
                ],
            )
            for word, meaning in (("base", "the base model"), ("merge", "that a part is merged"))
        ),
        ("- 1\n", ["r.yaml:1:1: found a list, expected a section of keys and values"]),
        ("", ["r.yaml: the file is empty"]),
        ("# only a comment\n", ["r.yaml: the file is empty"]),
        ("a: b: c\n", ["r.yaml:1:5: not valid YAML: mapping values are not allowed here"]),
        (b"a: \xff", ["r.yaml:1: byte 3 is not UTF-8 text, expected a YAML file"]),
        ("a: &a [*a]\n", ["r.yaml: nested more than 50 levels deep"]),
        ("[" * 5000, ["r.yaml: nested more than 50 levels deep"]),
        (
            b"#" * 1_000_001,
            ["r.yaml: larger than 1,000,000 bytes, expected a recipe or run file (YAML)"],
        ),
        (
            "a: !!python/object:os.system x\n",
            [
                "r.yaml:1:4: cannot read 'x' as tag:yaml.org,2002:python/object:os.system; "
                "expected plain YAML without tags"
            ],
        ),
        ("? [1]\n: 2\n", ["r.yaml:1:3: a key is a list or section, not text"]),
    ],
)
def test_a_problem_says_where_what_and_what_instead(problems, text, expected):
    assert sorted(problems(text)) == sorted(expected)


def test_problems_come_in_reading_order(problems):
    lines = problems(
        "seed: -1\nsead: 1\nseed: 2\nmodels: [./a]\nmethod: ties\n", "dtype=float", "shard_bytes=0"
    )
    assert [line.split(":")[1] for line in lines[:3]] == ["1", "2", "3"]
    assert lines[3:] == [
        "override 'dtype=float': dtype: found 'float', expected 'float32', 'bfloat16' or "
        "'float16'; did you mean 'float32'?",
        "override 'shard_bytes=0': shard_bytes: found 0, expected a number of at least 1",
    ]


def test_aliases_of_aliases_are_refused(problems):
    lines = ["a: &a [1,1,1,1,1,1,1,1,1,1]"]
    for last, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{last}'] * 10)}]")
    assert problems("\n".join(lines)) == ["r.yaml: more than 100,000 values"]


def test_aliases_that_repeat_a_section_are_welcome(load):
    recipe = load("base: &b ./b\nmodels: [{path: *b, name: x}]\nmethod: ties\n")
    assert recipe.models[0].path == "./b"


@pytest.mark.parametrize(
    ("path", "message"),
    [("nowhere.yaml", "nowhere.yaml: no such file"), (".", ".: is a folder, expected a YAML file")],
)
def test_a_path_without_a_file_is_refused(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_config(Path(path), MergeRecipe)
    assert str(caught.value) == message


def test_overrides_reach_into_short_forms(load):
    recipe = load(
        GOOD,
        "method.density=0.3",
        "models.0.path=./other",
        "models.1.weight=2",
        "coefficients.lambda=1e-1",
        "seed=7",
    )
    assert (recipe.method.name, recipe.method.density) == ("ties", 0.3)
    assert (recipe.models[0].path, recipe.models[0].name) == ("./other", "other")
    assert (recipe.models[1].path, recipe.models[1].weight) == ("./m2", 2.0)
    assert recipe.coefficients.lambda_ == 0.1
    assert recipe.seed == 7


def test_overrides_reach_into_short_lists_of_coefficients(load):
    recipe = load(GOOD + "coefficients: [0.3, 0.3]\n", "coefficients.1=0.5")
    assert recipe.coefficients.values == (0.3, 0.5)
    recipe = load(GOOD + "coefficients: [0.3, 0.3]\n", "coefficients.lambda=0.5")
    assert (recipe.coefficients.values, recipe.coefficients.lambda_) == ((0.3, 0.3), 0.5)


def test_overrides_reach_into_rules_of_weights(load):
    text = (
        "base: ./b\nmethod: ties\nmodels:\n- {path: ./a, weight: [{filter: '*mlp*', value: 1}]}\n"
    )
    assert load(text, "models.0.weight.0.value=0.5").models[0].weight[0].value == 0.5


def test_the_last_override_wins_and_mends_the_file(load):
    assert load(GOOD + "seed: many\n", "seed=x=y", "seed=2").seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "expected KEY=VALUE, e.g. seed=1"),
        ("=1", "expected KEY=VALUE with a dotted key, e.g. method.density=0.3"),
        ("seed=x", "seed: found 'x', expected a whole number"),
        ("seed.x=1", "seed: found a section, expected a whole number"),
        ("base.x=1", "base is './b', not a section with a key 'x'"),
        ("models.2=./z", "models is a list of 2 entries, expected an index from 0, not '2'"),
        (
            "coeficients.lambda=1",
            f"coeficients: unknown key, expected one of {RECIPE_KEYS}; "
            "did you mean 'coefficients'?",
        ),
        (
            "method.densty=1",
            f"method.densty: unknown key, expected one of {TIES_KEYS}; did you mean 'density'?",
        ),
    ],
)
def test_a_wrong_override_is_named(problems, override, message):
    assert problems(GOOD, override) == [f"override {override!r}: {message}"]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.one_of(
        st.binary(max_size=60),
        st.text(alphabet="abmethodls:-[]{}&*!|>?'\"#,%@`~<.=0123456789 \n\t", max_size=80),
        st.from_regex(r"(base|models|method|coefficients|seed): [-\[\]{}a-z0-9.:, &*!]{0,12}\n"),
    ),
    override=st.text(alphabet="modelsthd.=01[]{} :&*", max_size=20),
)
def test_garbage_raises_nothing_but_config_errors(load, text, override):
    for base in ("", GOOD):
        content = text if isinstance(text, bytes) else text.encode()
        with pytest.raises(ConfigError):
            load(base.encode() + content + b"\nnonsense_key: 1\n", override)


def test_editors_accept_short_and_long_forms():
    validator = jsonschema.Draft202012Validator(json.loads(schema_json(MergeRecipe)))
    good = {"base": "b", "models": ["a", {"path": "c"}], "method": "ties"}
    for change in (
        {},
        {"coefficients": "nan"},
        {"coefficients": [0.3, 0.2]},
        {"coefficients": {"source": "nan", "lambda": 2, "scale": "norm"}},
        {"method": {"name": "ties", "density": 0.3}},
        {"models": [{"path": "a", "weight": [0, 0.5, 1]}]},
        {"models": [{"path": "a", "weight": [{"filter": "*mlp*", "value": [0, 1]}, {"value": 1}]}]},
    ):
        validator.validate({**good, **change})
    for change in (
        {"method": "tise"},
        {"coefficients": "nana"},
        {"method": {"name": "ties", "densty": 1}},
        {"models": [{"name": "no path"}]},
        {"models": [{"path": "a", "weight": "much"}]},
        {"models": [{"path": "a", "weight": [{"filter": "*mlp*"}]}]},
        {"sead": 1},
    ):
        assert list(validator.iter_errors({**good, **change})), change
