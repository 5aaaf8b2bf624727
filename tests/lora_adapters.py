"""Small LoRA adapters in PEFT's folder layout, and a base for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from nan_merge.checkpoint import Checkpoint
from nan_merge.safetensors_file import BlockReader

BASE_SHAPES = {
    "embed.weight": (13, 6),
    "h.0.linear.weight": (9, 7),
    "h.0.linear.bias": (9,),
    "h.0.square.weight": (6, 6),
    "h.0.conv1d.weight": (5, 8),  # GPT-2's Conv1D lies as (inputs, outputs)
    "h.0.conv.weight": (4, 3, 2, 2),
    "head.weight": (13, 6),
}
WriteAdapter = Callable[..., Path]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape)


def base_tensors() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {name: draw(*shape) for name, shape in BASE_SHAPES.items()}


def write_adapter_in(parent: Path) -> WriteAdapter:
    """Write an adapter into `parent`; keys come without their `base_model.model.`."""

    def write(tensors: dict[str, Tensor], name: str = "adapter", **config: Any) -> Path:
        folder = parent / name
        folder.mkdir()
        keyed = {f"base_model.model.{key}": value for key, value in tensors.items()}
        save_file(keyed, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, **config}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    return write


def linear(module: str = "h.0.linear", outputs: int = 9, inputs: int = 7, rank: int = 2):
    return {
        f"{module}.lora_A.weight": draw(rank, inputs),
        f"{module}.lora_B.weight": draw(outputs, rank),
    }


def read(checkpoint: Checkpoint, name: str) -> Tensor:
    with BlockReader() as reader:
        tensor = checkpoint.tensors[name]
        return reader.read(tensor).view(tensor.shape)


def assert_is_base_plus(adapted: Checkpoint, base: Checkpoint, name: str, update: Tensor) -> None:
    expected = read(base, name).double() + update
    torch.testing.assert_close(read(adapted, name).double(), expected, rtol=3e-7, atol=3e-6)
