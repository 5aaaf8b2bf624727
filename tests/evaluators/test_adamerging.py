"""AdaMerging: its gradient against finite differences, its steps, and the table that it writes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluators.backends.clip import build_clip
from evaluators.backends.clip_checkpoints import save_clip, save_image_tower
from evaluators.image_sets import ImageSet, save_image_set
from evaluators.torchvision_repair import repair
from evaluators.training.adamerging import (
    AdamergingRecipe,
    MergedTower,
    learn,
    learn_coefficients,
    mean_entropy,
    start_rows,
)
from nan_merge.coefficient_table import CoefficientTable, read_coefficients
from nan_merge.errors import EvaluationError
from nan_merge.merge import merge_checkpoint
from nan_merge.recipe import MergeRecipe

repair()
pytest.importorskip("open_clip")
NUM_MODELS = 3


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Tower(nn.Module):
    """Two layers whose names have numbers, as a transformer's, and a head's projection."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 4)]).double()
        self.proj = nn.Parameter(random(4, 3, seed=9))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layers[1](torch.tanh(self.layers[0](pixels))) @ self.proj


@pytest.fixture
def tower() -> nn.Module:
    return Tower()


def merged_tower(tower: nn.Module, scope: str) -> MergedTower:
    shapes = {name: tuple(each.shape) for name, each in tower.named_parameters()}
    base = {n: random(*shape, seed=place) for place, (n, shape) in enumerate(shapes.items())}
    columns = [
        {n: base[n] + 0.5 * random(*shape, seed=10 * m + p) for p, (n, shape) in
         enumerate(shapes.items())}
        for m in range(1, NUM_MODELS + 1)
    ]  # fmt: skip
    return MergedTower(tower, base, columns, scope)


def losses_of(tower: nn.Module):
    """Entropies of two tasks of five and seven classes, through frozen heads."""
    heads = [3 * functional.normalize(random(classes, 3, seed=classes)) for classes in (5, 7)]
    pixels = [random(8, 6, seed=20 + place) for place in range(2)]

    def losses():
        for head, own in zip(heads, pixels, strict=True):
            yield mean_entropy(functional.normalize(tower(own), dim=1) @ head.T)

    return losses


@pytest.mark.parametrize(("scope", "num_keys"), [("model", 1), ("layer", 3), ("tensor", 5)])
def test_the_gradient_is_that_of_finite_differences(tower, scope, num_keys):
    merged, losses = merged_tower(tower, scope), losses_of(tower)
    assert len(merged.keys) == num_keys
    point = 0.3 + 0.1 * random(num_keys, NUM_MODELS, seed=30)
    merged.merge(point)
    gradient, total = merged.gradient(losses)
    assert gradient.shape == point.shape and float(gradient.abs().min()) > 1e-6

    def value(where: Tensor) -> float:
        merged.merge(where)
        with torch.no_grad():
            return sum(float(loss) for loss in losses())

    assert total == pytest.approx(value(point), rel=1e-12)
    step = 1e-5
    for place in np.ndindex(*point.shape):
        shift = torch.zeros_like(point)
        shift[place] = step
        difference = (value(point + shift) - value(point - shift)) / (2 * step)
        assert float(gradient[place]) == pytest.approx(difference, rel=1e-6, abs=1e-9)


def test_entropy_of_equal_chances_and_of_certainty():
    assert float(mean_entropy(torch.zeros(3, 8))) == pytest.approx(math.log(8))
    assert float(mean_entropy(torch.tensor([[1000.0, 0.0]]))) == 0.0


def test_learning_makes_predictions_more_certain_and_stays_between_zero_and_one(tower):
    merged, losses = merged_tower(tower, "tensor"), losses_of(tower)
    recipe = AdamergingRecipe(steps=60, learning_rate=0.05)
    start = torch.full((5, NUM_MODELS), 0.3, dtype=torch.float64)
    found = list(learn(merged, start, losses, recipe))
    assert found[-1][0] < 0.8 * found[0][0]
    steps = torch.stack([coefficients for _, coefficients in found])
    assert float(steps.min()) == 0 and float(steps.max()) == 1  # both bounds were met
    # Adam's first step is as long as the learning rate, against the gradient.
    merged.merge(start)
    gradient, _ = merged.gradient(losses)
    torch.testing.assert_close(steps[0], start - 0.05 * gradient.sign(), rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_is_an_error(tower):
    merged = merged_tower(tower, "model")
    bad = lambda: iter([tower(random(2, 6, seed=1)).sum() * float("nan")])  # noqa: E731
    with pytest.raises(EvaluationError, match="AdaMerging diverged: the entropy is nan"):
        next(learn(merged, torch.zeros(1, NUM_MODELS).double(), bad, AdamergingRecipe()))


def test_learning_starts_from_any_coefficients():
    names = ["visual.a", "visual.layers.0.x", "visual.layers.0.y"]
    by_tensor = CoefficientTable(
        ("m", "n"), "tensor", {}, {n: (float(p), 1.0) for p, n in enumerate(names)}, {}, 1.0
    )
    assert start_rows(by_tensor, names, "layer") == {
        "visual.a": (0.0, 1.0),
        "visual.layers.0": (1.5, 1.0),
    }
    assert start_rows(by_tensor, names, "model") == {"*": (1.0, 1.0)}
    whole = CoefficientTable(("m", "n"), "model", {}, {"*": (0.4, 0.6)}, {}, 1.0)
    assert start_rows(whole, names, "tensor") == dict.fromkeys(names, (0.4, 0.6))


MODEL = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


def write_set(path: Path, seed: int, labels: int) -> str:
    rng = np.random.default_rng(seed)
    images = ImageSet(
        name=f"toy{seed}",
        split="test",
        images=rng.integers(0, 255, (9, 16, 16, 3)).astype(np.uint8),
        labels=np.full(9, labels),
        sample_ids=tuple(map(str, range(9))),
        class_names=("cat", "dog"),
        templates=("a {}.",),
    )
    save_image_set(images, path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A CLIP with its tower, and two towers beside it."""
    folder = tmp_path_factory.mktemp("adamerging")
    (folder / "toy-tower.json").write_text(json.dumps(MODEL))
    clip = build_clip(folder / "toy-tower.json", seed=0)
    save_clip(clip, folder / "clip")
    save_image_tower(clip.tower, folder / "base")
    for seed in (1, 2):
        save_image_tower(build_clip(folder / "toy-tower.json", seed=seed).tower, folder / f"{seed}")
    return folder


def learn_table(folder: Path, output: Path, labels: int = 0, scope: str = "tensor") -> Path:
    start = CoefficientTable(("1", "2"), "model", {}, {"*": (0.3, 0.3)}, {}, 1.0)
    steps = learn_coefficients(
        str(folder / "clip"),
        str(folder / "base"),
        {name: str(folder / name) for name in "12"},
        {n: write_set(output.parent / f"{n}.npz", s, labels) for s, n in enumerate("ab")},
        start,
        AdamergingRecipe.model_validate({"scope": scope, "steps": 3, "images_per_task": 4}),
        seed=0,
        output=str(output),
    )
    assert [each.step for each in steps] == [1, 2, 3]
    return output


@pytest.mark.parametrize("scope", ["model", "layer", "tensor"])
def test_the_table_is_what_the_engine_then_merges_with(folder, tmp_path, scope):
    path = learn_table(folder, tmp_path / "table.json", scope=scope)
    content = {
        "base": str(folder / "base"),
        "models": [str(folder / name) for name in "12"],
        "method": "task_arithmetic",
        "coefficients": {"source": "table", "table": str(path)},
    }
    recipe = MergeRecipe.model_validate(content)
    merged = merge_checkpoint(recipe, tmp_path / "merged").output
    manifest = json.loads((merged / "merge_manifest.json").read_text())
    found, rows = read_coefficients(path, ["1", "2"])
    assert found == manifest["scope"] == scope
    learned = json.loads(path.read_text())["coefficients"]
    assert manifest["coefficients"] == pytest.approx(learned) if scope == "model" else True
    assert any(row != (0.3, 0.3) for row in rows.values())
    if scope != "model":
        assert manifest["coefficients"]["1"] == pytest.approx(learned["1"], rel=1e-6)


def test_labels_are_not_looked_at(folder, tmp_path):
    for labels in (0, 1):
        (tmp_path / str(labels)).mkdir()
        learn_table(folder, tmp_path / str(labels) / "table.json", labels)
    one, other = ((tmp_path / name / "table.json").read_bytes() for name in "01")
    assert one == other
