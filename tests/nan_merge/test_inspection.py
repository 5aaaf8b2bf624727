"""Statistics of models, against numbers worked by hand and a second way to compute them."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file

from nan_merge.errors import CheckpointError, IncompatibleError, NanMergeError
from nan_merge.inspection import inspect_models


@pytest.fixture
def by_hand(write_checkpoint):
    """Task vectors (1, -1, 0, 2) and (1, 1, 0, -2) in layer 0, and (3, 4) and none beside it."""
    base = {"layers.0.w": torch.tensor([1.0, 1.0, 1.0, 1.0]), "head": torch.tensor([[0.0], [0.0]])}
    one = {"layers.0.w": torch.tensor([2.0, 0.0, 1.0, 3.0]), "head": torch.tensor([[3.0], [4.0]])}
    two = {"layers.0.w": torch.tensor([2.0, 2.0, 1.0, -1.0]), "head": torch.tensor([[0.0], [0.0]])}
    return [write_checkpoint(*each) for each in (("base", base), ("one", one), ("two", two))]


def test_numbers_worked_by_hand(by_hand):
    base, one, two = by_hand
    found = inspect_models([one, two], base)
    layer, head = found.layers
    assert (layer.name, head.name, found.whole.num_elements) == ("layers.0", "head", 6)
    # weights (2, 0, 1, 3): sum 6, squares 14; variance 14/4 - 2.25
    moments = layer.weights[1]
    assert (moments.total, moments.norm, moments.mean) == (6, math.sqrt(14), 1.5)
    assert moments.std == pytest.approx(math.sqrt(1.25), abs=1e-15)
    assert moments.mean_over_std == pytest.approx(1.5 / math.sqrt(1.25))
    assert moments.t_ratio == pytest.approx(2 * 1.5 / math.sqrt(1.25))
    assert moments.mean_share == pytest.approx(9 / 14)  # 4 * 1.5² / 14
    # task vectors (1, -1, 0, 2) and (1, 1, 0, -2): both of squared length 6, product 1 - 1 - 4
    assert [each.norm for each in layer.task_vectors] == [math.sqrt(6)] * 2
    assert layer.cosine(0, 1) == pytest.approx(-4 / 6)
    assert layer.relative_norm(0) == pytest.approx(math.sqrt(6) / 2)
    # three elements are changed by both, two of them in opposite directions
    assert layer.opposed == ((0, 2), (2, 0))
    assert layer.changed == ((3, 3), (3, 3))
    assert (layer.num_conflicts, layer.num_contested) == (2, 3)
    assert layer.conflict_share == layer.opposed_share(0, 1) == pytest.approx(2 / 3)
    assert found.whole.task_vectors[0].norm == math.sqrt(6 + 25)


def test_what_is_undefined_is_none_and_json_has_null(by_hand):
    base, one, two = by_hand
    found = inspect_models([one, two], base)
    head = found.layers[1]
    assert head.cosine(0, 1) is None  # the second model did not change it
    assert head.conflict_share is None
    assert head.relative_norm(0) is None  # the base's is all zeros
    assert head.weights[0].mean_over_std is None
    as_json = found.as_json()
    assert as_json["layers"][1]["cosine"] == [[1.0, None], [None, None]]
    assert as_json["layers"][0]["task_vectors"]["one"]["changed_share"] == 0.75
    assert as_json["whole"]["weights"].keys() == {"base", "one", "two"}


def test_three_models_conflict_if_any_two_do(write_checkpoint):
    vectors = {"a": [1.0, 1.0, 0.0, 1.0], "b": [1.0, 0.0, 0.0, -1.0], "c": [-1.0, 1.0, 1.0, 0.0]}
    base = write_checkpoint("base", {"w": torch.zeros(4)})
    models = [write_checkpoint(name, {"w": torch.tensor(v)}) for name, v in vectors.items()]
    whole = inspect_models(models, base).whole
    assert (whole.num_conflicts, whole.num_contested) == (2, 3)
    assert whole.opposed == ((0, 1, 1), (1, 0, 1), (1, 1, 0))


def test_the_same_numbers_as_computed_whole_in_float64(family):
    names = ("math", "code", "chat")
    found = inspect_models([family[name] for name in names], family["base"])
    tensors = {name: load_file(f"{path}/model.safetensors") for name, path in family.items()}
    floats = [key for key, value in tensors["base"].items() if value.is_floating_point()]
    flat = {
        name: torch.cat([own[key].flatten() for key in floats]) for name, own in tensors.items()
    }
    vectors = [(flat[name] - flat["base"]).double() for name in names]
    for place, name in enumerate(names):
        assert found.whole.weights[place + 1].norm == pytest.approx(flat[name].double().norm())
        assert found.whole.weights[place + 1].std == pytest.approx(
            flat[name].double().std(correction=0)
        )
        assert found.whole.task_vectors[place].mean == pytest.approx(vectors[place].mean())
    expected = torch.cosine_similarity(vectors[0], vectors[2], dim=0)
    assert found.whole.cosine(0, 2) == pytest.approx(float(expected))
    signs = torch.stack([vector.sign() for vector in vectors])
    contested = (signs != 0).sum(dim=0) >= 2
    conflicts = (signs > 0).any(dim=0) & (signs < 0).any(dim=0)
    assert found.whole.num_contested == int(contested.sum())
    assert found.whole.num_conflicts == int(conflicts.sum())
    assert found.left_out == ("position_ids",)
    assert [layer.name for layer in found.layers] == [
        "embed.weight", "layers.0", "layers.1", "layers.10", "empty", "scale"
    ]  # fmt: skip


def test_no_number_depends_on_the_number_of_workers(family):
    models = [family["math"], family["code"]]
    assert inspect_models(models, family["base"], 1) == inspect_models(models, family["base"], 3)


def test_without_a_base_only_weights_are_described(family):
    found = inspect_models([family["math"], family["code"]])
    assert (found.base, found.models) == (None, ("math", "code"))
    assert len(found.whole.weights) == 2
    assert found.whole.task_vectors == ()
    assert found.as_json()["whole"].keys() == {"name", "num_elements", "weights"}


def test_progress_ends_at_all_bytes(family):
    seen: list[tuple[int, int]] = []
    inspect_models([family["math"]], family["base"], 1, lambda *pair: seen.append(pair))
    assert seen[-1][0] == seen[-1][1] > 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_names_file_and_tensor(write_checkpoint, value):
    base = write_checkpoint("base", {"w": torch.zeros(3, 2)})
    model = write_checkpoint("m", {"w": torch.tensor([[0.0, 0.0], [0.0, value], [-value, 0.0]])})
    with pytest.raises(CheckpointError) as caught:
        inspect_models([model], base)
    assert f"{model}/model.safetensors: tensor w holds NaN or infinity" in str(caught.value)
    assert "repair or leave out this model" in str(caught.value)


def test_differences_beyond_float32(write_checkpoint):
    base = write_checkpoint("base", {"w": torch.full((3,), -3e38)})
    model = write_checkpoint("m", {"w": torch.full((3,), 3e38)})
    with pytest.raises(CheckpointError, match="w: the models differ by more than float32"):
        inspect_models([model], base)


def test_every_model_that_cannot_be_opened_is_named(family, tmp_path):
    with pytest.raises(NanMergeError) as caught:
        inspect_models([family["math"], f"{tmp_path}/x", f"{tmp_path}/y"], f"{tmp_path}/z")
    assert all(f"{tmp_path}/{name} " in str(caught.value) for name in "xyz")


def test_folders_of_one_name_are_told_apart(write_checkpoint, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    paths = [write_checkpoint(f"{d}/model", {"w": torch.ones(2) * k}) for k, d in enumerate("ab")]
    assert inspect_models(paths).models == tuple(paths)


def test_models_of_another_family_are_refused_in_few_words(write_checkpoint):
    layers = {f"layers.{place}.w": torch.ones(2, 3) for place in range(12)}
    other = {f"layers.{place}.w": torch.ones(3, 2) for place in range(12)}
    base = write_checkpoint("base", layers)
    with pytest.raises(IncompatibleError) as caught:
        inspect_models([write_checkpoint("other", other)], base)
    first, line, last = str(caught.value).splitlines()
    assert first == "The models do not fit each other (12 problems):"
    assert line.startswith("  - layers.0.w: other has shape (3, 2)")
    assert line.endswith("base has (2, 3) (and 11 more like it)")
    assert last == f"Inspect together only fine-tunes of base ({base})."
