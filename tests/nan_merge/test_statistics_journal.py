import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from nan_merge.errors import CheckpointError
from nan_merge.merge import merge_checkpoint, merge_checkpoints, merge_key_of
from nan_merge.recipe import MergeRecipe
from nan_merge.statistics_journal import journaled
from nan_merge.tasks import Task, run_serially

METHODS = [
    {"name": "ties"},
    {"name": "ties", "dialect": "peft", "density": 0.001},
    {"name": "dare_ties", "dialect": "mergekit"},
    {"name": "slerp"},
]


def recipe_of(family: dict[str, str], method: dict[str, Any]) -> MergeRecipe:
    models = [family["math"], family["code"]]
    content = {"base": family["base"], "models": models, "method": method, "shard_bytes": 300}
    if method["name"] == "ties":
        content["coefficients"] = {"source": "nan", "target": "task_vector"}
    return MergeRecipe.model_validate(content)


@pytest.mark.parametrize("method", METHODS, ids=lambda row: "-".join(map(str, row.values())))
def test_a_merge_that_was_interrupted_measures_nothing_twice(
    family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any]
):
    recipe = recipe_of(family, method)
    expected = merge_checkpoint(recipe, tmp_path / "undisturbed").output

    def killed_at_the_merge(tasks: Sequence[Task]) -> list[Any]:
        if tasks[0].label == "merge":
            raise KeyboardInterrupt
        return run_serially(tasks)

    with pytest.raises(KeyboardInterrupt):
        merge_checkpoint(recipe, tmp_path / "merged", killed_at_the_merge)

    def refuse(*_: Any) -> None:
        raise AssertionError("measured again")

    for module, name in (
        ("inner_products", "raw_runs"),
        ("statistics", "raw_runs"),
        ("kept_sums", "raw_runs"),
    ):
        monkeypatch.setattr(f"nan_merge.{module}.{name}", refuse)
    merged = merge_checkpoint(recipe, tmp_path / "merged").output
    for file in expected.glob("*.safetensors"):
        assert (merged / file.name).read_bytes() == file.read_bytes()
    manifests = [(path / "merge_manifest.json").read_text() for path in (expected, merged)]
    assert manifests[0] == manifests[1]


def test_a_damaged_record_is_made_again(family: dict[str, str], tmp_path: Path):
    recipe = recipe_of(family, METHODS[0])
    records = tmp_path / "records"
    records.mkdir()
    seen: list[Any] = []

    def run(tasks: Sequence[Task]) -> list[Any]:
        seen.append(run_serially(tasks))
        return seen[-1]

    from nan_merge.measure import measure
    from nan_merge.plan import plan_merge

    plan = plan_merge(recipe)
    first = measure([plan], journaled(run, records))
    for path in records.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    again = measure([plan], journaled(run, records))
    third = measure([plan], journaled(run, records))
    assert repr(first) == repr(again) == repr(third)
    half = len(seen) // 3
    assert repr(seen[:half]) == repr(seen[half : 2 * half]) == repr(seen[2 * half :])


def test_values_that_are_not_finite_survive_a_record(family: dict[str, str], tmp_path: Path):
    recipe = recipe_of(family, METHODS[1])
    from nan_merge.measure import measure
    from nan_merge.plan import plan_merge

    plan = plan_merge(recipe)
    measured = [measure([plan], journaled(run_serially, tmp_path))[0] for _ in range(2)]
    thresholds = [row for item in measured for row in item.tensor_thresholds["scale"]]
    assert thresholds == [math.inf] * 4


def test_an_error_is_not_recorded(family: dict[str, str], tmp_path: Path):
    file = Path(family["math"]) / "model.safetensors"
    tensors = load_file(file)
    tensors["layers.0.bias"][0] = math.nan
    save_file(tensors, file)
    recipe = recipe_of(family, METHODS[0])
    for _ in range(2):
        with pytest.raises(CheckpointError, match="NaN or infinity"):
            merge_checkpoint(recipe, tmp_path / "merged")


def test_statistics_outlive_a_merge_until_an_input_changes(
    family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe, kept = recipe_of(family, METHODS[0]), tmp_path / "statistics"
    first = merge_checkpoints([(recipe, tmp_path / "first")], statistics=kept)

    def refuse(*_: Any) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        for module in ("inner_products", "statistics"):
            patch.setattr(f"nan_merge.{module}.raw_runs", refuse)
        merge_checkpoints([(recipe, tmp_path / "second")], statistics=kept)
        with pytest.raises(AssertionError, match="measured again"):
            merge_checkpoints([(recipe, tmp_path / "without")])
        file = Path(family["math"]) / "model.safetensors"
        tensors = load_file(file)
        tensors["layers.0.bias"] += 1
        save_file(tensors, file)
        with pytest.raises(AssertionError, match="measured again"):
            merge_checkpoints([(recipe, tmp_path / "changed")], statistics=kept)
    shared = (tmp_path / "second" / "merge_manifest.json").read_text()
    assert shared == (tmp_path / "first" / "merge_manifest.json").read_text()
    assert merge_key_of(recipe) != first[0].key


def test_the_key_of_a_recipe_is_that_of_its_result(family: dict[str, str], tmp_path: Path):
    recipe = recipe_of(family, METHODS[0])
    assert merge_key_of(recipe) == merge_checkpoint(recipe, tmp_path / "out").key
