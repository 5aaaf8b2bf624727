"""RegMean and Fisher merging through the engine, and statistics that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nan_merge.checkpoint import open_checkpoint
from nan_merge.cost import list_passes, memory_ceiling
from nan_merge.errors import CheckpointError, CoefficientError, ConfigError, IncompatibleError
from nan_merge.fingerprint import fingerprint
from nan_merge.manifest import read_manifest
from nan_merge.merge import merge_checkpoint
from nan_merge.plan import plan_merge
from nan_merge.recipe import MergeRecipe

NAMES = ["one", "two"]
WriteStatistics = Callable[..., dict[str, Any]]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def model(write_checkpoint, tmp_path) -> WriteStatistics:
    """A model with statistics beside it, as a recipe names it."""

    def write(
        name: str,
        weights: Mapping[str, Tensor],
        kind: str,
        statistics: Mapping[str, Tensor],
        *,
        weight: float = 1.0,
        **facts: Any,
    ) -> dict[str, Any]:
        path = write_checkpoint(name, {k: v.float().contiguous() for k, v in weights.items()})
        folder = tmp_path / f"{name}-{kind}"
        folder.mkdir()
        save_file(
            {key: value.float().contiguous() for key, value in statistics.items()},
            folder / "model.safetensors",
        )
        table = {"format": 1, "kind": kind, "model": fingerprint(open_checkpoint(path)), **facts}
        (folder / "statistics.json").write_text(json.dumps(table))
        return {"path": path, "name": name, "weight": weight, "statistics": str(folder)}

    return write


def merged(models: list[dict[str, Any]], method: object, tmp_path: Path, **more: Any):
    """Tensors and manifest of a merge."""
    recipe = MergeRecipe.model_validate({"models": models, "method": method, **more})
    output = merge_checkpoint(recipe, tmp_path / "merged").output
    return load_file(output / "model.safetensors"), read_manifest(output / "merge_manifest.json")


def least_squares(inputs: Tensor, outputs: Tensor) -> Tensor:
    """W, (outputs, inputs), with the smallest squared error of `inputs @ W.T`."""
    return torch.linalg.lstsq(inputs, outputs).solution.T


# --- the theory of arXiv 2505.16148 -----------------------------------------------------------


def test_regmean_with_exact_gram_matrices_is_the_joint_solution_of_equation_8(model, tmp_path):
    counts, models = (200, 50), []
    data = [(random(n, 6, seed=n), random(n, 4, seed=n + 1)) for n in counts]
    for name, (inputs, outputs) in zip(NAMES, data, strict=True):
        weights = {"linear.weight": least_squares(inputs, outputs)}
        gram = {"linear.weight": inputs.T @ inputs / len(inputs)}
        models.append(model(name, weights, "gram", gram, weight=len(inputs)))
    joint = least_squares(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))
    found, _ = merged(models, {"name": "regmean", "off_diagonal": 1.0}, tmp_path)
    torch.testing.assert_close(found["linear.weight"].double(), joint, rtol=1e-5, atol=1e-6)
    # Neither model's own solution, nor their average, is anywhere near.
    average = sum(load_file(f"{m['path']}/model.safetensors")["linear.weight"] for m in models) / 2
    assert float((average - joint).abs().max()) > 0.01


def test_regmean_on_isotropic_inputs_is_the_sample_weighted_average_of_equation_9(model, tmp_path):
    counts = (300, 100)
    weights = [random(4, 6, seed=place) for place in (1, 2)]
    models = [
        model(name, {"linear.weight": own}, "gram", {"linear.weight": torch.eye(6)}, weight=count)
        for name, own, count in zip(NAMES, weights, counts, strict=True)
    ]
    for off_diagonal in (1.0, 0.9):  # which there is nothing of
        method = {"name": "regmean", "off_diagonal": off_diagonal}
        found, _ = merged(models, method, tmp_path / str(off_diagonal))
        expected = (300 * weights[0] + 100 * weights[1]) / 400
        torch.testing.assert_close(found["linear.weight"].double(), expected, rtol=1e-6, atol=1e-6)


def test_nan_stands_for_the_numbers_of_samples(model, tmp_path):
    weights = [random(4, 6, seed=1), 3 * random(4, 6, seed=2)]
    grams = [x.T @ x / len(x) for x in (random(50, 6, seed=3), random(50, 6, seed=4))]
    models = [
        model(name, {"w": own}, "gram", {"w": gram})
        for name, own, gram in zip(NAMES, weights, grams, strict=True)
    ]
    method = {"name": "regmean", "off_diagonal": 1.0}
    found, manifest = merged(models, method, tmp_path, coefficients="nan")
    inverse = [1 / float(own.float().norm()) for own in weights]
    shares = [each / sum(inverse) for each in inverse]
    assert list(manifest["coefficients"].values()) == pytest.approx(shares, rel=1e-6)
    total = sum(share * gram for share, gram in zip(shares, grams, strict=True))
    right = sum(s * w @ g for s, w, g in zip(shares, weights, grams, strict=True))
    torch.testing.assert_close(found["w"].double(), right @ total.inverse(), rtol=1e-5, atol=1e-5)


# --- RegMean ----------------------------------------------------------------------------------


def test_off_diagonal_entries_are_scaled_and_the_rest_is_averaged(model, tmp_path):
    weights = [{"w": random(3, 5, seed=s), "bias": random(3, seed=s + 9)} for s in (1, 2)]
    grams = [x.T @ x / len(x) for x in (random(9, 5, seed=3), random(9, 5, seed=4))]
    models = [
        model(name, own, "gram", {"w": gram})
        for name, own, gram in zip(NAMES, weights, grams, strict=True)
    ]
    found, manifest = merged(models, "regmean", tmp_path)
    scaled = [0.9 * gram + 0.1 * torch.diag(gram.diagonal()) for gram in grams]
    right = sum(own["w"] @ gram for own, gram in zip(weights, scaled, strict=True))
    expected = right @ (scaled[0] + scaled[1]).inverse()
    torch.testing.assert_close(found["w"].double(), expected, rtol=1e-5, atol=1e-6)
    mean = (weights[0]["bias"] + weights[1]["bias"]) / 2
    torch.testing.assert_close(found["bias"].double(), mean, rtol=1e-6, atol=1e-6)
    assert "repairs" not in manifest


def test_weights_whose_first_axis_meets_the_inputs_are_turned(model, tmp_path):
    grams = [x.T @ x / len(x) for x in (random(9, 4, seed=3), random(9, 4, seed=4))]
    weights = [random(4, 4, seed=s) for s in (1, 2)]  # square: the shape does not tell
    as_is, turned = [
        [
            model(f"{name}{turn}", {"w": own.T if turn else own}, "gram", {"w": gram}, **facts)
            for name, own, gram in zip(NAMES, weights, grams, strict=True)
        ]
        for turn, facts in (("", {}), ("T", {"inputs_first": ["w"]}))
    ]
    one, _ = merged(as_is, "regmean", tmp_path / "1")
    other, _ = merged(turned, "regmean", tmp_path / "2")
    torch.testing.assert_close(one["w"], other["w"].T, rtol=1e-6, atol=1e-6)
    assert float((one["w"] - other["w"]).abs().max()) > 0.01


def test_directions_that_no_data_showed_keep_the_average_and_the_manifest_says_so(model, tmp_path):
    weights = [random(3, 5, seed=s) for s in (1, 2)]
    grams = []
    for seed in (3, 4):
        inputs = random(50, 5, seed=seed)
        inputs[:, 2] = 0
        grams.append(inputs.T @ inputs / 50)
    models = [
        model(name, {"w": own}, "gram", {"w": gram})
        for name, own, gram in zip(NAMES, weights, grams, strict=True)
    ]
    found, manifest = merged(models, "regmean", tmp_path)
    average = (weights[0] + weights[1]) / 2
    torch.testing.assert_close(found["w"][:, 2].double(), average[:, 2], rtol=1e-6, atol=1e-6)
    assert float((found["w"] - average)[:, 0].abs().max()) > 0.01
    mean_square = float((sum(grams) / 2).diagonal().mean())
    assert manifest["repairs"] == {"ridge": {"w": pytest.approx(1e-6 * mean_square, rel=1e-5)}}


def test_fewer_rows_than_inputs_get_a_ridge_without_scaling(model, tmp_path):
    inputs = random(3, 6, seed=1)
    gram, weights = inputs.T @ inputs / 3, [random(2, 6, seed=s) for s in (2, 3)]
    models = [
        model(name, {"w": own}, "gram", {"w": gram})
        for name, own in zip(NAMES, weights, strict=True)
    ]
    method = {"name": "regmean", "off_diagonal": 1.0}
    found, manifest = merged(models, method, tmp_path / "1")
    # One Gram matrix for both: the average, whatever the ridge.
    torch.testing.assert_close(
        found["w"].double(), (weights[0] + weights[1]) / 2, rtol=1e-3, atol=1e-4
    )
    assert set(manifest["repairs"]) == {"ridge"}
    _, manifest = merged(models, "regmean", tmp_path / "2")  # 0.9 makes it regular
    assert "repairs" not in manifest


def test_an_endless_ridge_is_the_average(model, tmp_path):
    weights = [random(3, 5, seed=s) for s in (1, 2)]
    grams = [x.T @ x / len(x) for x in (random(9, 5, seed=3), random(9, 5, seed=4))]
    models = [
        model(name, {"w": own}, "gram", {"w": gram})
        for name, own, gram in zip(NAMES, weights, grams, strict=True)
    ]
    found, _ = merged(models, {"name": "regmean", "ridge": 1e9}, tmp_path)
    average = (weights[0] + weights[1]) / 2
    torch.testing.assert_close(found["w"].double(), average, rtol=1e-5, atol=1e-5)


# --- Fisher -----------------------------------------------------------------------------------


def test_fisher_weighs_every_element_and_averages_what_nobody_knows(model, tmp_path):
    weights = [{"w": torch.tensor([1.0, 2, 3, 4])}, {"w": torch.tensor([5.0, 6, 7, 8])}]
    known = [{"w": torch.tensor([3e-12, 0, 0, 1])}, {"w": torch.tensor([1e-12, 1e-30, 0, 1])}]
    models = [
        model(name, own, "fisher", each)
        for name, own, each in zip(NAMES, weights, known, strict=True)
    ]
    found, manifest = merged(models, "fisher", tmp_path)
    assert found["w"].tolist() == pytest.approx([2.0, 6.0, 5.0, 6.0])
    assert manifest["repairs"] == {"averaged, as no example touched them": {"w": 1}}


def test_fisher_all_zero_is_the_average_and_says_how_many(model, tmp_path):
    models = [
        model(name, {"w": random(7, seed=s)}, "fisher", {"w": torch.zeros(7)})
        for s, name in enumerate(NAMES)
    ]
    found, manifest = merged(models, "fisher", tmp_path / "fisher")
    average, _ = merged(models, "average", tmp_path / "average")
    torch.testing.assert_close(found["w"], average["w"])
    assert manifest["repairs"]["averaged, as no example touched them"] == {"w": 7}


def test_bytes_do_not_depend_on_workers_or_pieces(model, tmp_path):
    shape = (1200, 1000)  # more than one run
    fisher = [
        model(name, {"w": random(*shape, seed=s)}, "fisher", {"w": random(*shape, seed=s).square()})
        for s, name in enumerate(NAMES)
    ]
    recipe = MergeRecipe.model_validate({"models": fisher, "method": "fisher"})
    found = [
        (merge_checkpoint(recipe, tmp_path / str(n), workers=n).output / "model.safetensors")
        for n in (1, 2)
    ]
    assert found[0].read_bytes() == found[1].read_bytes()
    total = sum(random(*shape, seed=s).square() for s in (0, 1))
    expected = sum(random(*shape, seed=s) ** 3 for s in (0, 1)) / total
    torch.testing.assert_close(load_file(found[0])["w"].double(), expected, rtol=1e-4, atol=1e-4)


# --- what is refused --------------------------------------------------------------------------


def plan(models: list[dict[str, Any]], method: str = "fisher") -> None:
    plan_merge(MergeRecipe.model_validate({"models": models, "method": method}))


@pytest.fixture
def pair(model) -> list[dict[str, Any]]:
    return [
        model(name, {"w": random(2, 3, seed=s)}, "fisher", {"w": torch.ones(2, 3)})
        for s, name in enumerate(NAMES)
    ]


def test_models_without_statistics_are_named(pair):
    pair[1].pop("statistics")
    with pytest.raises(ConfigError, match="fisher reads Fisher diagonals, but two names none"):
        plan(pair)


def test_a_folder_that_holds_none_is_refused(pair):
    pair[1]["statistics"] = pair[1]["path"]
    with pytest.raises(CheckpointError, match=r"holds no statistics\.json"):
        plan(pair)


def test_another_kind_is_refused(pair):
    with pytest.raises(IncompatibleError, match="holds Fisher diagonals, but method regmean reads"):
        plan(pair, "regmean")


def test_shapes_and_lacking_tensors_are_listed(model, pair):
    other = model("three", {"w": random(2, 3)}, "fisher", {"w": torch.ones(3, 2)})
    with pytest.raises(IncompatibleError, match=r"has w as \(3, 2\) instead of \(2, 3\)"):
        plan([pair[0], other])
    other = model("four", {"w": random(2, 3)}, "fisher", {"x": torch.ones(3, 2)})
    with pytest.raises(IncompatibleError, match="those of four lack w, which others have"):
        plan([pair[0], other])
    alone = model("five", {"w": random(2, 3, seed=5)}, "fisher", {"x": torch.ones(3, 2)})
    with pytest.raises(IncompatibleError, match="they name no tensor of the models"):
        plan([other, alone])


def test_statistics_of_other_weights_are_refused(pair, tmp_path):
    pair[0]["statistics"], pair[1]["statistics"] = pair[1]["statistics"], pair[0]["statistics"]
    with pytest.raises(IncompatibleError, match="Fisher diagonals of other weights than those of"):
        merged(pair, "fisher", tmp_path)


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "holds NaN or infinity"), (-1.0, "is negative where")]
)
def test_values_that_no_statistic_has_are_refused(model, tmp_path, value, message):
    models = [
        model(name, {"w": random(3, seed=s)}, "fisher", {"w": torch.tensor([1.0, value, 2.0])})
        for s, name in enumerate(NAMES)
    ]
    with pytest.raises(CheckpointError, match=message):
        merged(models, "fisher", tmp_path)


def test_a_matrix_that_is_not_symmetric_is_no_gram_matrix(model, tmp_path):
    models = [
        model(name, {"w": random(2, 3, seed=s)}, "gram", {"w": torch.arange(9.0).view(3, 3)})
        for s, name in enumerate(NAMES)
    ]
    with pytest.raises(CheckpointError, match="is not symmetric"):
        merged(models, "regmean", tmp_path)


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_negative_weights_are_refused(model, tmp_path, method):
    kind, shape = ("fisher", (2, 3)) if method == "fisher" else ("gram", (3, 3))
    models = [
        model(name, {"w": random(2, 3, seed=s)}, kind, {"w": torch.eye(3)[: shape[0]]}, weight=w)
        for s, (name, w) in enumerate(zip(NAMES, (2.0, -1.0), strict=True))
    ]
    with pytest.raises(CoefficientError, match="no coefficient may be negative"):
        merged(models, method, tmp_path)


def test_other_statistics_are_another_merge(model, pair, tmp_path):
    _, first = merged(pair, "fisher", tmp_path / "1")
    folder = Path(pair[0]["statistics"])
    save_file({"w": torch.full((2, 3), 2.0)}, folder / "model.safetensors")
    _, second = merged(pair, "fisher", tmp_path / "2")
    assert first["merge_key"] != second["merge_key"]
    averages = [merged(pair, "average", tmp_path / name)[1]["merge_key"] for name in "ab"]
    assert averages[0] == averages[1]  # which reads none


def test_passes_and_memory_count_what_the_statistics_take(model, tmp_path):
    shape = (40, 30)
    models = [
        model(n, {"w": random(*shape, seed=s)}, "gram", {"w": torch.eye(30)})
        for s, n in enumerate(NAMES)
    ]
    opened = plan_merge(MergeRecipe.model_validate({"models": models, "method": "regmean"}))
    passes = {each.label: each.read_bytes for each in list_passes(opened)}
    weights, grams = 2 * 40 * 30 * 4, 2 * 30 * 30 * 4
    # The models were hashed when their statistics were written; these have not been yet.
    assert passes == {"merge": weights + grams, "fingerprints": grams}
    averaged = plan_merge(MergeRecipe.model_validate({"models": models, "method": "average"}))
    assert [each.label for each in list_passes(averaged)] == ["merge"]
    without = [{key: value for key, value in m.items() if key != "statistics"} for m in models]
    recipe = {"base": models[0]["path"], "models": without, "method": "breadcrumbs"}
    more = memory_ceiling(opened, 1) - memory_ceiling(
        plan_merge(MergeRecipe.model_validate(recipe)), 1
    )
    gram_space = 2 * 30 * 30 * 8 + (5 * 30 * 30 + 4 * 40 * 30) * 8
    assert more == gram_space - 40 * 30 * (4 + 4)  # breadcrumbs reads a base, too
