"""Small checkpoints and files of settings, made as the tests need them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nan_merge.checkpoint import Checkpoint, open_checkpoint
from nan_merge.errors import ConfigError
from nan_merge.recipe import MergeRecipe
from nan_merge.yaml_config import load_config
from tests.lora_adapters import WriteAdapter, base_tensors, write_adapter_in

WriteCheckpoint = Callable[..., str]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAN_MERGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> WriteCheckpoint:
    """Write name -> tensors as a checkpoint folder and return its path."""

    def write(name: str, tensors: dict[str, Tensor]) -> str:
        folder = tmp_path / name
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text('{"torch_dtype": "float32"}')
        return str(folder)

    return write


@pytest.fixture
def base(write_checkpoint: WriteCheckpoint) -> Checkpoint:
    """What the adapters of `write_adapter` stand on."""
    return open_checkpoint(write_checkpoint("base", base_tensors()))


@pytest.fixture
def write_adapter(tmp_path: Path) -> WriteAdapter:
    return write_adapter_in(tmp_path)


@pytest.fixture
def family(write_checkpoint: WriteCheckpoint) -> dict[str, str]:
    """A base and three fine-tunes of it, with layers, a scalar, an empty tensor and integers."""
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    base = {
        "embed.weight": draw(11, 4),
        "layers.0.weight": draw(5, 3),
        "layers.0.bias": draw(5),
        "layers.1.weight": draw(600, 1000),  # more than one cell of the grid
        "layers.10.weight": draw(3, 1),
        "scale": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "position_ids": torch.arange(6),
    }
    paths = {"base": write_checkpoint("base", base)}
    for name, size in (("math", 0.02), ("code", 0.05), ("chat", 0.1)):
        tuned = {
            key: value + size * draw(*value.shape) if value.is_floating_point() else value
            for key, value in base.items()
        }
        paths[name] = write_checkpoint(name, tuned)
    return paths


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a file of settings and load it."""
    monkeypatch.chdir(tmp_path)

    def load(text: str | bytes, *overrides: str, schema=MergeRecipe):
        content = text.encode() if isinstance(text, str) else text
        Path("r.yaml").write_bytes(content)
        return load_config(Path("r.yaml"), schema, overrides)

    return load


@pytest.fixture
def problems(load):
    """The lines of the error that loading a file of settings gives."""

    def problems(text: str | bytes, *overrides: str, schema=MergeRecipe) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides, schema=schema)
        return str(caught.value).splitlines()

    return problems
