"""Everything that is wrong is said at once, and what becomes of every tensor."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from nan_merge.errors import (
    CheckpointError,
    CoefficientError,
    IncompatibleError,
    NanMergeError,
    OutputError,
)
from nan_merge.merge import merge_checkpoint
from nan_merge.plan import plan_merge
from nan_merge.preflight import preflight, tensor_groups
from nan_merge.recipe import MergeRecipe
from nan_merge.shares import SHARES

BASE = {"model.embed_tokens.weight": (4, 2), "layers.0.w": (3, 2), "layers.1.w": (3, 2)}
TASK_VECTOR = {"source": "nan", "target": "task_vector"}


@pytest.fixture
def write(write_checkpoint):
    """Write a model of some shapes, with a tokenizer of as many words as asked for."""

    def write(name: str, changes: dict[str, tuple[int, ...]] | None = None, words: int = 0) -> str:
        shapes = BASE | (changes or {})
        value = len(name) / 10
        path = write_checkpoint(name, {key: torch.full(s, value) for key, s in shapes.items()})
        if words:
            vocabulary = {f"word{place}": place for place in range(words)}
            (Path(path) / "vocab.json").write_text(json.dumps(vocabulary))
        return path

    return write


def recipe(base: str | None, *models: str, **content) -> MergeRecipe:
    content = {"method": "task_arithmetic", **content}
    return MergeRecipe.model_validate({"base": base, "models": list(models), **content})


def refusal(merge: MergeRecipe, output: Path | None = None) -> NanMergeError:
    with pytest.raises(NanMergeError) as caught:
        preflight(merge, output)
    return caught.value


def test_problems_of_every_kind_are_one_list(write, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    base = write("base", words=4)
    misfit = write("misfit", {"layers.1.w": (3, 3)}, words=4)
    no_words = write("wordless", {"model.embed_tokens.weight": (5, 2)})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    wrong = recipe(base, misfit, no_words, f"{tmp_path}/gone", num_layers=7)
    error = refusal(wrong, tmp_path / "out")
    assert type(error) is NanMergeError
    first, *lines = str(error).splitlines()
    assert first == "These models cannot be merged; 4 things must be mended:"
    starts = [line[4:] for line in lines if line.startswith("  - ")]
    assert starts[0].startswith(f"No checkpoint at {tmp_path}/gone (looked for")
    assert starts[1].startswith(f"wordless ({no_words}) has 5 rows of embeddings, base 4, and no")
    assert starts[2] == "The models do not fit each other (1 problem):"
    assert "      - layers.1.w: misfit has shape (3, 3)" in str(error)
    assert "embed_tokens: " not in str(error)  # that is the tokenizer's problem, said above
    assert starts[3] == f"{tmp_path}/out exists already. Remove it or choose another folder."


def test_layers_coefficients_and_disk_after_models_that_fit(write, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    wrong = recipe(
        write("base"), write("one"), write("three"), num_layers=7,
        coefficients=TASK_VECTOR | {"include": ["*mpl*"]},
    )  # fmt: skip
    message = str(refusal(wrong, tmp_path / "out"))
    assert "The recipe is for models of 7 layers" in message
    assert "No space left on the disk" in message
    assert "3 things must be mended" not in message  # the layers' line is there only once
    fitting = wrong.model_copy(update={"num_layers": None})
    message = str(refusal(fitting, tmp_path / "out"))
    assert "`include: ['*mpl*']` and `exclude: []` leave no tensor" in message
    assert "2 things must be mended" in message


def test_problems_of_one_kind_keep_their_kind(write, tmp_path):
    error = refusal(recipe(f"{tmp_path}/a", f"{tmp_path}/b", f"{tmp_path}/c"))
    assert type(error) is CheckpointError
    assert "3 things must be mended" in str(error)
    one = refusal(recipe(f"{tmp_path}/a", write("fine")))
    assert type(one) is CheckpointError
    assert str(one).startswith("No checkpoint at")


def test_every_model_without_its_words_is_named(write):
    base = write("base", words=4)
    first = write("first", {"model.embed_tokens.weight": (5, 2)})
    second = write("second", {"model.embed_tokens.weight": (6, 2)})
    error = refusal(recipe(base, first, write("fine", words=4), second))
    assert type(error) is IncompatibleError
    assert f"first ({first}) has 5 rows" in str(error)
    assert f"second ({second}) has 6 rows" in str(error)


def test_a_tokenizer_of_nobody_is_one_problem(write):
    message = str(refusal(recipe(write("base", words=4), write("a"), write("b"), tokenizer="c")))
    assert message.startswith("`tokenizer: c` is neither `base`, `union`, nor a model")


def test_the_tokenizer_of_a_model_that_cannot_be_opened_is_no_second_problem(write, tmp_path):
    models = [{"path": f"{tmp_path}/gone", "name": "gone"}, write("one", words=4)]
    spec = {"base": write("base", words=4), "models": models, "tokenizer": "gone"}
    error = refusal(MergeRecipe.model_validate({**spec, "method": "task_arithmetic"}))
    assert str(error).startswith(f"No checkpoint at {tmp_path}/gone")


def test_without_its_base_models_are_compared_with_each_other_alone(write, tmp_path):
    # What only the base could tell is not guessed: which words count, and `missing: base`.
    one = write("one", {"model.embed_tokens.weight": (5, 2), "layers.2.w": (1,)})
    two = write("two", {"layers.1.w": (9, 9)})
    wrong = recipe(f"{tmp_path}/gone", one, two, missing={"layers.2.w": "base"})
    message = str(refusal(wrong))
    assert "2 things must be mended" in message
    assert "layers.1.w: two has shape (9, 9)" in message
    assert "embed_tokens" not in message
    assert "layers.2.w" not in message


def test_the_same_model_twice_and_a_misfit(write):
    one = write("one")
    twice = recipe(write("base"), one, write("two", {"layers.0.w": (1, 1)}))
    models = [*twice.models, twice.models[0].model_copy(update={"name": "again"})]
    message = str(refusal(twice.model_copy(update={"models": tuple(models)})))
    assert "one and again are the same folder" in message
    assert "layers.0.w: two has shape (1, 1)" in message


def test_a_base_that_is_also_a_model_is_refused_from_headers(write):
    base = write("base")
    wrong = recipe(base, write("one"), os.path.relpath(base), coefficients=TASK_VECTOR)
    error = refusal(wrong)
    assert type(error) is CoefficientError
    assert str(error).startswith("Model base has a task-vector norm of 0: nan would divide")
    spared = wrong.coefficients.model_copy(update={"zero_norm": "exclude"})
    assert preflight(wrong.model_copy(update={"coefficients": spared}))


def test_weights_that_sum_to_zero_are_refused_from_headers(write):
    one, two = write("one"), write("three")
    models = [{"path": one, "weight": 1.0}, {"path": two, "weight": -1.0}]
    spec = MergeRecipe.model_validate({"models": models, "method": "average"})
    with pytest.raises(CoefficientError, match="weights of all models sum to 0"):
        plan_merge(spec)


@pytest.mark.parametrize(
    ("method", "weight", "coefficients", "words"),
    [
        ("model_stock", 1.0, [0.4, 0.6], "plain mean of the models"),
        ("model_stock", 2.0, "uniform", "and models without `weight`"),
        ("sce", -0.5, "uniform", "no coefficient may be negative"),
    ],
)
def test_coefficients_that_mean_nothing_to_the_method_are_refused_from_headers(
    write, method, weight, coefficients, words
):
    models = [write("one"), {"path": write("three"), "weight": weight}]
    spec = {"base": write("base"), "models": models, "method": method}
    with pytest.raises(CoefficientError, match=words):
        plan_merge(MergeRecipe.model_validate({**spec, "coefficients": coefficients}))


def test_a_device_that_is_not_here_is_one_of_the_problems(write, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    merge = recipe(write("base"), write("one"), tokenizer="nobody", device="cuda")
    message = str(refusal(merge))
    assert "2 things must be mended" in message
    assert "torch finds no CUDA device here" in message


def test_an_output_that_is_an_input(write):
    base, one = write("base"), write("one")
    message = str(refusal(recipe(base, one), Path(base)))
    assert f"is, or holds, the input base ({base})" in message


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("file/out", "is a file"),
        ("link", "link is a link"),
        ("file", "file exists already"),
        ("x" * 300, "File name too long"),
    ],
)
def test_an_output_that_cannot_be_written(write, tmp_path, place, words):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    error = refusal(recipe(write("base"), write("one")), tmp_path / place)
    assert isinstance(error, OutputError)
    assert words in str(error)


def test_an_output_that_holds_this_merge_or_another(write, tmp_path):
    merge = recipe(write("base"), write("one"), write("three"))
    merge_checkpoint(merge, tmp_path / "out")
    assert preflight(merge, tmp_path / "out")
    moved = merge.models[0].model_copy(update={"path": str(Path(merge.models[0].path) / ".")})
    assert preflight(
        merge.model_copy(update={"models": (moved, merge.models[1])}), tmp_path / "out"
    )
    error = refusal(merge.model_copy(update={"seed": 3, "dtype": "float16"}), tmp_path / "out")
    assert "out holds another merge already (its recipe has another dtype, seed)" in str(error)
    (tmp_path / "out" / "model.safetensors").unlink()  # it will be made again
    assert preflight(merge.model_copy(update={"seed": 3}), tmp_path / "out")


def test_what_becomes_of_every_tensor(write_checkpoint):
    base = {name: torch.ones(2, 2) for name in ("layers.0.w", "layers.1.w", "head", "mlp")}
    base |= {"ids": torch.arange(3), "lost": torch.ones(2)}
    paths = [write_checkpoint("base", base)]
    paths.append(write_checkpoint("one", {k: v + 1 for k, v in base.items() if k != "lost"}))
    without = {k: v + 2 for k, v in base.items() if k != "head"}
    without |= {"extra": torch.ones(2, 2)}
    paths.append(write_checkpoint("two", without))
    silent = [{"filter": "mlp", "value": 0.0}, {"value": 1.0}]
    merge = MergeRecipe.model_validate({
        "base": paths[0],
        "models": [{"path": path, "weight": silent} for path in paths[1:]],
        "method": "task_arithmetic",
        "missing": {"head": "base", "*": "drop"},
    })  # fmt: skip
    fates = {
        (group.pattern, group.num_tensors, group.num_elements): group.fate
        for group in tensor_groups(plan_merge(merge))
    }
    assert fates == {
        ("layers.*.w", 2, 8): "merged",
        ("head", 1, 4): "merged; two as the base",
        ("ids", 1, 3): "copied, if all models agree",
        ("mlp", 1, 4): "base's: no model has weight here",
        ("lost", 1, 2): "left out (`missing`): only in base, two",
        ("extra", 1, 4): "left out (`missing`): only in two",
    }


def test_rows_that_are_matched_by_token_are_named(write):
    base = write("base", words=4)
    longer = write("longer", {"model.embed_tokens.weight": (5, 2)}, words=5)
    fates = {g.pattern: g.fate for g in tensor_groups(plan_merge(recipe(base, longer)))}
    assert fates == {
        "model.embed_tokens.weight": "merged; rows matched by token",
        "layers.*.w": "merged",
    }


@pytest.mark.parametrize("source", sorted(SHARES))
def test_every_source_of_coefficients_passes_preflight(write, source):
    assert preflight(recipe(write("base"), write("one"), write("three"), coefficients=source))


@pytest.mark.parametrize("content", ["{", "[1]", "null", "\xff"])
def test_a_damaged_config_is_found_before_the_merge(write, content):
    base = write("base")
    (Path(base) / "config.json").write_bytes(content.encode("latin-1"))
    error = refusal(recipe(base, write("one"), dtype="bfloat16"))
    assert type(error) is CheckpointError
    assert str(error).startswith(f"{base}/config.json is damaged: it")


def test_a_config_whose_vocabulary_is_no_number_is_no_hindrance(write):
    base = write("base", words=4)
    (Path(base) / "config.json").write_text('{"vocab_size": [4]}')
    assert preflight(recipe(base, write("one", words=4)))


def test_integers_of_other_types_are_found_in_headers(write_checkpoint):
    base = write_checkpoint("base", {"w": torch.ones(2), "ids": torch.arange(3)})
    other = write_checkpoint("other", {"w": torch.ones(2), "ids": torch.arange(3).int()})
    text = str(refusal(recipe(base, other)))
    assert f"ids: other holds int32 ({other}/model.safetensors), base int64" in text


def test_a_folder_of_a_user_who_is_not_there(write):
    text = str(refusal(recipe(write("base"), "~no-such-user/model")))
    assert text.startswith("No checkpoint at ~no-such-user/model: there is no such user.")


def test_a_recipe_is_given_back_by_what_the_manifest_holds(write, tmp_path):
    for place, extra in enumerate(
        [{"tokenizer": None}, {"coefficients": "metagpt"}, {"method": "ties", "seed": 3}]
    ):
        merge = recipe(write(f"base{place}"), write(f"one{place}"), write(f"three{place}"), **extra)
        output = tmp_path / f"out{place}"
        merge_checkpoint(merge, output)
        manifest = json.loads((output / "merge_manifest.json").read_text())
        assert MergeRecipe.model_validate(manifest["recipe"]) == merge
        card = (output / "README.md").read_text()
        assert json.loads(card.split("````json")[1].split("````")[0]) == manifest["recipe"]


def test_the_type_is_named_in_every_part_of_a_config(write, tmp_path):
    base = write("base")
    config = {"dtype": "float32", "text_config": {"torch_dtype": "float32", "dtype_config": 1}}
    (Path(base) / "config.json").write_text(json.dumps(config))
    merge_checkpoint(recipe(base, write("one"), dtype="bfloat16"), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text()) == {
        "dtype": "bfloat16",
        "text_config": {"torch_dtype": "bfloat16", "dtype_config": 1},
    }


def test_an_output_whose_name_no_file_can_have_is_refused_by_the_merge_too(write, tmp_path):
    with pytest.raises(OutputError, match="name too long"):
        merge_checkpoint(recipe(write("base"), write("one")), tmp_path / ("x" * 300))
