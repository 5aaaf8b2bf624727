import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import nan_merge.shard
from nan_merge.checkpoint import open_checkpoint
from nan_merge.errors import CheckpointError, IncompatibleError, OutputError
from nan_merge.fingerprint import fingerprint, hash_checkpoint, remembered_fingerprint
from nan_merge.merge import merge_checkpoint, merge_checkpoints
from nan_merge.publish import publish_folder, staging_path
from nan_merge.recipe import MergeRecipe
from nan_merge.tasks import Task, run_serially

MODELS = ("math", "code", "chat")
RECIPES: dict[str, dict[str, Any]] = {
    "average": {"method": "average"},
    "task-arithmetic": {"method": "task_arithmetic", "coefficients": {"lambda": 0.3}},
    "nan": {
        "method": "task_arithmetic",
        "coefficients": {"source": "nan", "target": "task_vector", "scale": "norm"},
    },
    "nan-layers": {"method": "ties", "coefficients": {"source": "nan", "scope": "layer"}},
    "ties": {"method": {"name": "ties", "density": 0.3, "disjoint": "sum"}, "coefficients": "nan"},
}


def recipe(family: dict[str, str], **content: Any) -> MergeRecipe:
    models = [{"path": family[name], "name": name} for name in MODELS]
    return MergeRecipe.model_validate({"base": family["base"], "models": models, **content})


def merged(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def expected_task_arithmetic(family: dict[str, str], coefficients: list[float]):
    base = {k: v.double() for k, v in load_file(f"{family['base']}/model.safetensors").items()}
    result = {name: tensor.clone() for name, tensor in base.items()}
    for model, coefficient in zip(MODELS, coefficients, strict=True):
        for name, tensor in load_file(f"{family[model]}/model.safetensors").items():
            result[name] += coefficient * (tensor.double() - base[name])
    return result


def test_task_arithmetic_equals_a_float64_reference(family: dict[str, str], tmp_path: Path):
    spec = recipe(family, method="task_arithmetic", coefficients=[0.5, -0.25, 0.125])
    merge_checkpoint(spec, tmp_path / "out")
    expected = expected_task_arithmetic(family, [0.5, -0.25, 0.125])
    found = merged(tmp_path / "out")
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-6)
        assert tensor.shape == expected[name].shape
    assert found["position_ids"].dtype == torch.int64


def test_ties_equals_a_reference_over_the_flat_vectors(family: dict[str, str], tmp_path: Path):
    content = {"method": {"name": "ties", "density": 0.3}, "coefficients": [1.0, 1.0, 1.0]}
    merge_checkpoint(recipe(family, **content), tmp_path / "out")
    names = [k for k, v in merged(tmp_path / "out").items() if v.is_floating_point()]

    def flat(tensors: dict[str, torch.Tensor]) -> np.ndarray:
        return torch.cat([tensors[name].flatten() for name in names]).numpy()

    base = flat(load_file(f"{family['base']}/model.safetensors"))
    trimmed = []
    for model in MODELS:
        vector = flat(load_file(f"{family[model]}/model.safetensors")) - base
        size = len(vector)
        threshold = np.sort(np.abs(vector))[size - int(size * 0.3) - 1]
        trimmed.append(np.where(np.abs(vector) >= threshold, vector, 0).astype(np.float64))
    total = np.sum(trimmed, axis=0)
    signs = np.sign(total)
    signs[signs == 0] = np.sign(signs.sum())
    agreeing = [np.where(np.sign(vector) == signs, vector, 0) for vector in trimmed]
    count = np.maximum(np.sum([vector != 0 for vector in agreeing], axis=0), 1)
    np.testing.assert_allclose(
        flat(merged(tmp_path / "out")), base + np.sum(agreeing, axis=0) / count, atol=1e-6
    )


@pytest.mark.parametrize("name", RECIPES)
def test_any_order_of_tasks_and_any_second_run_gives_the_same_bytes(
    family: dict[str, str], tmp_path: Path, name: str
):
    spec = recipe(family, shard_bytes=300, **RECIPES[name])
    merge_checkpoint(spec, tmp_path / "forwards")

    def backwards(tasks: Any) -> list[Any]:
        return run_serially(tasks[::-1])[::-1]

    merge_checkpoint(spec, tmp_path / "backwards", backwards)
    assert contents(tmp_path / "forwards") == contents(tmp_path / "backwards")


@pytest.mark.parametrize("name", RECIPES)
def test_any_number_of_workers_gives_the_same_bytes(
    family: dict[str, str], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    # Chunks so small that there are many; the constant is part of what must stay the same.
    monkeypatch.setattr("nan_merge.blocks.CHUNK_ELEMENTS", 1 << 17)
    spec = recipe(family, **RECIPES[name])
    for workers in (1, 2, 5):
        merge_checkpoint(spec, tmp_path / f"{workers}", workers=workers)
        assert contents(tmp_path / f"{workers}") == contents(tmp_path / "1")


def test_inputs_are_known_by_what_was_read_of_them(
    family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    merge_checkpoint(recipe(family, **RECIPES["average"]), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "merge_manifest.json").read_text())
    told = {entry["name"]: entry["fingerprint"] for entry in manifest["fingerprints"]}
    for name, path in {**family, "out": str(tmp_path / "out")}.items():
        opened = open_checkpoint(path)
        remembered = remembered_fingerprint(opened)
        assert remembered is not None
        assert remembered == told.get(name, remembered)
        monkeypatch.setenv("NAN_MERGE_CACHE", str(tmp_path / f"empty-{name}"))
        assert fingerprint(opened) == remembered
        monkeypatch.setenv("NAN_MERGE_CACHE", str(tmp_path / "cache"))


def test_recipes_merged_together_equal_recipes_merged_alone(family: dict[str, str], tmp_path: Path):
    specs = {name: recipe(family, **content) for name, content in RECIPES.items()}
    merge_checkpoints([(spec, tmp_path / "all" / name) for name, spec in specs.items()])
    for name, spec in specs.items():
        merge_checkpoint(spec, tmp_path / "alone" / name)
        assert contents(tmp_path / "all" / name) == contents(tmp_path / "alone" / name)


def test_the_index_and_the_manifest_describe_the_files(family: dict[str, str], tmp_path: Path):
    out = tmp_path / "out"
    merge_checkpoint(recipe(family, shard_bytes=300, **RECIPES["nan"]), out)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert {name for name in index["weight_map"]} == set(merged(out))
    manifest = json.loads((out / "merge_manifest.json").read_text())
    for file, entry in manifest["files"].items():
        assert (out / file).stat().st_size == entry["bytes"]
    hashed = hash_checkpoint(open_checkpoint(str(out)))
    kept = {
        name: row for entry in manifest["files"].values() for name, row in entry["xxh3"].items()
    }
    assert {name: [d.hex() for d in row] for name, row in hashed.items()} == kept
    assert list(manifest["coefficients"]) == list(MODELS)
    assert sum(manifest["alpha"].values()) == pytest.approx(1)
    norms = manifest["norms"]
    assert norms["math"] < norms["code"] < norms["chat"]


def test_dtype_is_rounded_once_and_told_in_the_config(family: dict[str, str], tmp_path: Path):
    spec = recipe(family, method="task_arithmetic", coefficients=[0.5, 0.5, 0.5], dtype="bfloat16")
    merge_checkpoint(spec, tmp_path / "out")
    exact = recipe(family, method="task_arithmetic", coefficients=[0.5, 0.5, 0.5])
    merge_checkpoint(exact, tmp_path / "exact")
    found, reference = merged(tmp_path / "out"), merged(tmp_path / "exact")
    assert torch.equal(found["layers.1.weight"], reference["layers.1.weight"].bfloat16())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"


def test_the_same_merge_again_does_nothing(family: dict[str, str], tmp_path: Path):
    spec = recipe(family, **RECIPES["nan"])
    assert not merge_checkpoint(spec, tmp_path / "out").reused
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    assert merge_checkpoint(spec, tmp_path / "out").reused
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_merge_that_lost_a_file_is_made_again(family: dict[str, str], tmp_path: Path, name: str):
    spec = recipe(family, **RECIPES["nan"])
    merge_checkpoint(spec, tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / name).unlink()
    assert not merge_checkpoint(spec, tmp_path / "out").reused
    assert contents(tmp_path / "out") == before


def test_another_merge_does_not_replace_it_unless_told_to(family: dict[str, str], tmp_path: Path):
    merge_checkpoint(recipe(family, **RECIPES["average"]), tmp_path / "out")
    before = contents(tmp_path / "out")
    other = recipe(family, **RECIPES["nan"])
    with pytest.raises(OutputError, match="out exists already"):
        merge_checkpoint(other, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    merge_checkpoints([(other, tmp_path / "out")], replace=True)
    assert contents(tmp_path / "out") != before


def test_a_folder_that_is_no_merge_is_never_replaced(family: dict[str, str], tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="mine exists already"):
        merge_checkpoints([(recipe(family, **RECIPES["nan"]), tmp_path / "mine")], replace=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_an_interrupted_merge_continues_with_the_shards_that_are_left(
    family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = recipe(family, shard_bytes=300, **RECIPES["ties"])
    merge_checkpoint(spec, tmp_path / "whole")

    def stop_before_the_last(tasks: Any) -> list[Any]:
        if tasks[0].label.startswith("merge"):
            run_serially(tasks[:-1])
            raise KeyboardInterrupt
        return run_serially(tasks)

    with pytest.raises(KeyboardInterrupt):
        merge_checkpoint(spec, tmp_path / "out", stop_before_the_last)
    assert not (tmp_path / "out").exists()

    written: list[str] = []
    original = nan_merge.shard.make_header
    monkeypatch.setattr(
        nan_merge.shard, "make_header", lambda t: written.append(t[0][0]) or original(t)
    )
    merge_checkpoint(spec, tmp_path / "out")
    assert written == ["layers.10.weight"]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_two_attempts_at_one_file_do_not_disturb_each_other(
    family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = recipe(family, **RECIPES["ties"])
    merge_checkpoint(spec, tmp_path / "undisturbed")
    task: list[Task] = []
    attempts: list[list[Any]] = []
    sync = nan_merge.shard.os.fsync

    def sync_after_another_attempt(descriptor: int) -> None:
        monkeypatch.setattr(nan_merge.shard.os, "fsync", sync)
        # This one has written everything and was given up for dead; the other one ends first.
        attempts.append(task[0].function(*task[0].arguments))
        sync(descriptor)

    def run_tasks(tasks: Sequence[Task]) -> list[Any]:
        if tasks[0].label == "merge":
            task[:] = tasks
            monkeypatch.setattr(nan_merge.shard.os, "fsync", sync_after_another_attempt)
        return run_serially(tasks)

    merge_checkpoint(spec, tmp_path / "out", run_tasks)
    assert len(attempts) == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_an_attempt_that_ends_after_the_merge_was_published_leaves_nothing_behind(
    family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    output, seen = tmp_path / "out", list[Task]()

    def run_tasks(tasks: Sequence[Task]) -> list[Any]:
        seen.extend(tasks)
        return run_serially(tasks)

    merge_checkpoint(recipe(family, **RECIPES["ties"]), output, run_tasks)
    expected = contents(output)
    for task in (task for task in seen if task.label != "merge"):
        assert repr(run_serially([task]))
        assert not staging_path(output).exists()

    write = nan_merge.shard.write_bytes_atomically

    def write_when_published(path: Path, content: bytes, **options: Any) -> None:
        staging_path(output).rename(tmp_path / "published")
        write(path, content, **options)

    monkeypatch.setattr(nan_merge.shard, "write_bytes_atomically", write_when_published)
    (staging_path(output) / ".journal").mkdir(parents=True)
    run_serially([task for task in seen if task.label == "merge"])
    assert not staging_path(output).exists()
    assert contents(output) == expected


def test_what_attempts_that_died_have_written_is_removed(family: dict[str, str], tmp_path: Path):
    spec = recipe(family, **RECIPES["ties"])
    output = tmp_path / "out"

    def leave_something(tasks: Sequence[Task]) -> list[Any]:
        if tasks[0].label == "merge":
            assert not list(staging_path(output).glob(".model*"))
            (staging_path(output) / ".model.safetensors.1.partial").touch()
            if not attempts:
                attempts.append(1)
                (staging_path(output) / ".merge_manifest.json.1.partial").touch()
                raise KeyboardInterrupt
        return run_serially(tasks)

    attempts: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        merge_checkpoint(spec, output, leave_something)
    assert list(staging_path(output).glob(".model*"))
    merge_checkpoint(spec, output, leave_something)
    assert not list(output.glob(".*"))


def test_a_full_disk_is_one_clear_error_and_leaves_nothing_in_place(
    family: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    spec = recipe(family, **RECIPES["nan"])
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", no_space)
        with pytest.raises(OutputError, match="No space left on the disk"):
            merge_checkpoint(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge_checkpoint(spec, tmp_path / "out")
    assert (tmp_path / "out" / "merge_manifest.json").exists()


def test_two_writers_of_one_folder_are_kept_apart(family: dict[str, str], tmp_path: Path):
    with (
        publish_folder(tmp_path / "out", keep_partial=True),
        pytest.raises(OutputError, match="Another process is writing"),
    ):
        merge_checkpoint(recipe(family, **RECIPES["nan"]), tmp_path / "out")


def test_an_input_cut_short_is_refused_before_anything_is_written(
    family: dict[str, str], tmp_path: Path
):
    path = Path(family["code"]) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"code.*100 bytes are missing at its end"):
        merge_checkpoint(recipe(family, **RECIPES["nan"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not staging_path(tmp_path / "out").exists()


def test_integers_that_differ_are_refused(family: dict[str, str], tmp_path: Path):
    tensors = load_file(f"{family['code']}/model.safetensors")
    tensors["position_ids"] += 1
    save_file(tensors, f"{family['code']}/model.safetensors", {"format": "pt"})
    with pytest.raises(IncompatibleError, match=r"position_ids: .*different integers"):
        merge_checkpoint(recipe(family, **RECIPES["average"]), tmp_path / "out")


def test_nan_in_an_input_is_refused_by_methods_that_measure_nothing(
    family: dict[str, str], tmp_path: Path
):
    tensors = load_file(f"{family['code']}/model.safetensors")
    tensors["layers.0.bias"][0] = float("nan")
    save_file(tensors, f"{family['code']}/model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers.0.bias: .*NaN or infinity"):
        merge_checkpoint(recipe(family, **RECIPES["average"]), tmp_path / "out")


def test_a_result_too_large_for_its_type_is_refused(family: dict[str, str], tmp_path: Path):
    spec = recipe(family, method="task_arithmetic", coefficients=[1e7, 1, 1], dtype="float16")
    with pytest.raises(CheckpointError, match=r"too large for float16"):
        merge_checkpoint(spec, tmp_path / "out")
