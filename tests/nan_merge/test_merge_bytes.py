"""Every method and dialect through the engine: its bytes depend on nothing but the recipe."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from nan_merge.merge import merge_checkpoint, merge_checkpoints
from nan_merge.methods import METHODS
from nan_merge.recipe import MergeRecipe

MODELS = ("math", "code")
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "breadcrumbs": [{"rows": True}],
    "model_stock": [{"vectors": "row"}],
    "nuslerp": [{"vectors": "row"}, {"vectors": "column"}],
    "sce": [{"density": 0.4}],
    "wudi": [{"steps": 3}],
}
SMALL_BLOCKS = {
    "blocks.BLOCK_ELEMENTS": 1 << 8,
    "blocks.RUN_ELEMENTS": 1 << 9,
    "raw_runs.RAW_RUN_ELEMENTS": 1 << 11,
    "compiled_merge.RAW_RUN_ELEMENTS": 1 << 11,
}
KEPT = [{"filter": "*bias", "value": 1.0}, {"value": [0.3, 0.7]}]


def variants() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, row in METHODS.items():
        dialect = row.options.model_fields.get("dialect")
        for each in get_args(dialect.annotation) if dialect else [None]:
            found.append({"name": name} | ({"dialect": each} if each else {}))
        found += [{"name": name} | more for more in OPTIONS.get(name, [])]
    found += [{"name": "dare_ties", "density": KEPT}, {"name": "breadcrumbs", "density": KEPT}]
    # With these the compiled ones are more than the kernel combines in one call.
    found += [{"name": "ties", "density": density / 10} for density in range(4, 10)]
    return [each for each in found if METHODS[each["name"]].reads is None]


def recipe_of(paths: dict[str, str], method: dict[str, Any]) -> MergeRecipe:
    row = METHODS[method["name"]]
    models = [{"path": paths[name], "name": name} for name in MODELS[: row.most_models]]
    spec = {"source": "nan", "target": "task_vector", "scope": "layer"}
    return MergeRecipe.model_validate(
        {"base": paths["base"], "models": models, "method": method, "seed": 3}
        | ({} if row.nan_refused else {"coefficients": spec})
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def paths(write_checkpoint, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    # Chunks so small that a tensor has several; the constant is part of what must stay the same.
    monkeypatch.setattr("nan_merge.blocks.CHUNK_ELEMENTS", 1 << 12)
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    base = {
        "layers.0.weight": draw(70, 131),
        "layers.0.bias": draw(70),
        "layers.1.weight": draw(3, 5, 7),
        "layers.2.weight": draw(6, 1),
        "scale": torch.tensor(1.5),
    }
    found = {"base": write_checkpoint("base", {k: v.bfloat16() for k, v in base.items()})}
    for name in MODELS:
        tuned = {key: value + 0.1 * draw(*value.shape) for key, value in base.items()}
        found[name] = write_checkpoint(name, tuned)
    return found


def test_alone_or_together_on_any_number_of_workers_and_in_blocks_of_any_size(
    paths: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipes = [recipe_of(paths, method) for method in variants()]
    together = [tmp_path / "together" / str(place) for place in range(len(recipes))]
    merge_checkpoints(list(zip(recipes, together, strict=True)), workers=3)
    for name, number in SMALL_BLOCKS.items():
        monkeypatch.setattr(f"nan_merge.{name}", number)
    for recipe, output in zip(recipes, together, strict=True):
        alone = merge_checkpoint(recipe, tmp_path / "alone" / output.name).output
        assert contents(output) == contents(alone), recipe.method
