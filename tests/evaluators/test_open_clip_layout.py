"""open_clip's own folders, in safetensors or pickled, are merged; open_clip opens the result."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evaluators.backends.clip import Clip, build_clip
from evaluators.backends.clip_checkpoints import load_clip, save_clip
from evaluators.torchvision_repair import repair
from nan_merge.checkpoint import open_checkpoint
from nan_merge.merge import merge_checkpoint
from nan_merge.recipe import MergeRecipe
from nan_merge.verify import verify_checkpoint

repair()
open_clip = pytest.importorskip("open_clip")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAN_MERGE_CACHE", str(tmp_path / "cache"))


def save(clip: Clip, folder: Path, pickled: bool) -> None:
    save_clip(clip, folder)
    if pickled:
        weights = folder / "open_clip_model.safetensors"
        torch.save(load_file(weights), folder / "open_clip_pytorch_model.bin")
        weights.unlink()


def test_both_layouts_are_merged_and_open_clip_loads_the_result(tmp_path: Path):
    states = []
    for seed, name in enumerate(("base", "one", "two")):
        clip = build_clip("nan-merge-mini", seed=seed)
        save(clip, tmp_path / name, pickled=name == "two")
        states.append(clip.model.state_dict())
    recipe = MergeRecipe.model_validate(
        {
            "base": str(tmp_path / "base"),
            "models": [str(tmp_path / "one"), str(tmp_path / "two")],
            "method": "task_arithmetic",
            "coefficients": [0.5, 0.25],
            "shard_bytes": 1_000,  # open_clip knows no shards, so there are none
        }
    )
    merge_checkpoint(recipe, tmp_path / "merged")
    weights = [path.name for path in (tmp_path / "merged").glob("*.safetensors*")]
    assert weights == ["open_clip_model.safetensors"]
    assert verify_checkpoint(tmp_path / "merged").num_files == 1
    model = open_clip.create_model(f"local-dir:{tmp_path / 'merged'}")
    base, one, two = states
    for name, tensor in model.state_dict().items():
        expected = base[name].double()
        if tensor.is_floating_point():
            expected = 0.25 * expected + 0.5 * one[name].double() + 0.25 * two[name].double()
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6)
    config = json.loads((tmp_path / "merged/open_clip_config.json").read_text())
    assert config["model_name"] == "nan-merge-mini"
    ours = load_clip(tmp_path / "merged").model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in model.state_dict().items())
    assert merge_checkpoint(recipe, tmp_path / "merged").reused


def test_a_pickled_base_gives_the_same_layout(tmp_path: Path):
    for seed, name in enumerate(("base", "one")):
        save(build_clip("nan-merge-mini", seed=seed), tmp_path / name, pickled=True)
    recipe = {
        "base": str(tmp_path / "base"),
        "models": [str(tmp_path / "one")],
        "method": "task_arithmetic",
    }
    merge_checkpoint(MergeRecipe.model_validate(recipe), tmp_path / "merged")
    found = load_clip(tmp_path / "merged").model.state_dict()
    expected = load_file(tmp_path / "merged/open_clip_model.safetensors")
    assert found.keys() == expected.keys()
    assert open_clip.create_model(f"local-dir:{tmp_path / 'merged'}")


@pytest.mark.parametrize("pickled", [False, True])
def test_a_folder_with_the_layout_of_transformers_too_is_read_as_that(
    tmp_path: Path, pickled: bool
):
    save(build_clip("nan-merge-mini", seed=0), tmp_path / "clip", pickled)
    assert "logit_scale" in open_checkpoint(str(tmp_path / "clip")).tensors
    other = tmp_path / "clip" / ("pytorch_model.bin" if pickled else "model.safetensors")
    tensors = {"vision_model.weight": torch.ones(2)}
    if pickled:
        torch.save(tensors, other)
    else:
        from safetensors.torch import save_file

        save_file(tensors, other)
    assert list(open_checkpoint(str(tmp_path / "clip")).tensors) == ["vision_model.weight"]
