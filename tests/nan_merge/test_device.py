from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nan_merge import device
from nan_merge.device import chosen_device
from nan_merge.errors import ConfigError
from nan_merge.merge import merge_checkpoint
from nan_merge.methods import METHODS
from nan_merge.recipe import MergeRecipe

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def test_auto_is_the_cpu_where_there_is_no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(device, "DRIVER", tmp_path / "none")
    assert chosen_device("auto") == "cpu"
    assert chosen_device("cpu") == "cpu"


def test_a_driver_without_a_device_leaves_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    driver = tmp_path / "version"
    driver.touch()
    monkeypatch.setattr(device, "DRIVER", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen_device("auto") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert chosen_device("auto") == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert chosen_device("auto") == "cpu"


def test_asking_for_cuda_in_vain_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch finds no CUDA device here"):
        chosen_device("cuda")


def test_the_manifest_says_where_each_file_was_computed(family: dict[str, str], tmp_path: Path):
    recipe = MergeRecipe.model_validate(
        {"models": [family["math"], family["code"]], "method": "average", "device": "cpu"}
    )
    from nan_merge.manifest import read_manifest

    output = merge_checkpoint(recipe, tmp_path / "merged").output
    files = read_manifest(output / "merge_manifest.json")["files"]
    assert files["model.safetensors"]["device"] == "cpu"


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("name", sorted(n for n, row in METHODS.items() if row.reads is None))
def test_cuda_agrees_with_the_cpu_to_one_rounding(
    family: dict[str, str], tmp_path: Path, name: str
):
    row = METHODS[name]
    models = [family["math"], family["code"]][: row.most_models or 2]
    found: dict[str, Any] = {}
    for where in ("cpu", "cuda"):
        recipe = MergeRecipe.model_validate(
            {"base": family["base"], "models": models, "method": name, "device": where}
        )
        output = merge_checkpoint(recipe, tmp_path / where).output
        found[where] = load_file(output / "model.safetensors")
    for key, expected in found["cpu"].items():
        torch.testing.assert_close(found["cuda"][key], expected, rtol=2**-22, atol=1e-7)
