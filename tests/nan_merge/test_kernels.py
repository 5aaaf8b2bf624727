"""The compiled kernels against torch and numpy, which compute the same in other ways."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nan_merge import shard
from nan_merge.dtypes import DType, finite
from nan_merge.kernels import convert, lanes
from nan_merge.kernels.build import parts_compiled
from nan_merge.kernels.convert import BFLOAT16, FLOAT32
from nan_merge.kernels.lanes import LANES
from nan_merge.merge import merge_checkpoint
from nan_merge.methods import METHODS
from nan_merge.recipe import MergeRecipe

narrow, widen = parts_compiled(convert.narrow, convert.widen)
add_products, add_values = parts_compiled(lanes.add_products, lanes.add_values)

COMPILED: list[dict[str, Any]] = [
    {"name": "average"},
    {"name": "task_arithmetic"},
    {"name": "ties", "density": 0.3},
    {"name": "ties", "density": 1.0, "disjoint": "sum", "lambda": 0.7},
    {"name": "ties", "density": (0.2, 0.5, 1.0), "elect": "frequency", "order": "after"},
    {"name": "ties", "dialect": "mergekit"},
    {"name": "ties", "dialect": "peft", "density": 0.01},
    {"name": "ties", "dialect": "fusionbench"},
    {"name": "dare_linear", "density": 0.4},
    {"name": "dare_linear", "density": (0.4, 1.0, 0.9), "rescale": False},
    {"name": "dare_linear", "dialect": "mergekit"},
    {"name": "dare_ties", "density": 0.6},
    {"name": "dare_ties", "dialect": "mergekit", "disjoint": "weighted_mean"},
    {"name": "dare_ties", "dialect": "peft", "elect": "frequency"},
]


def test_every_method_that_has_a_program_is_compared():
    assert {row["name"] for row in COMPILED} == {n for n, row in METHODS.items() if row.program}


def as_types(family: dict[str, str], *types: torch.dtype) -> dict[str, str]:
    """The family with each model's floats in another type."""
    for path, dtype in zip(family.values(), types, strict=True):
        file = Path(path) / "model.safetensors"
        tensors = load_file(file)
        save_file(
            {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}, file
        )
    return family


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
@pytest.mark.parametrize("method", COMPILED, ids=lambda row: "-".join(map(str, row.values())))
def test_kernels_give_the_bytes_that_torch_gives(
    family: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: dict[str, Any],
    dtype: str | None,
):
    as_types(family, torch.bfloat16, torch.bfloat16, torch.float32, torch.float16)
    weights = [0.7, -0.4, 0.9]
    models = [
        {"path": family[name], "weight": weight}
        for name, weight in zip(("math", "code", "chat"), weights, strict=True)
    ]
    recipe = MergeRecipe.model_validate(
        {"base": family["base"], "models": models, "method": method, "dtype": dtype, "seed": 3}
    )
    compiled = merge_checkpoint(recipe, tmp_path / "compiled", workers=2).output
    monkeypatch.setattr(shard, "is_compiled", lambda recipe: False)
    by_torch = merge_checkpoint(recipe, tmp_path / "torch").output
    found, expected = ((path / "model.safetensors").read_bytes() for path in (compiled, by_torch))
    assert found == expected


@example([3.4028234663852886e38], 0)  # the largest float32 is infinity in bfloat16
@given(st.lists(st.floats(width=32), min_size=1, max_size=40), st.integers(0, 3))
def test_rounding_to_bfloat16_is_torchs(values: list[float], skipped: int):
    floats = np.array(values, np.float32)
    stored = np.zeros(2 * (len(values) + skipped), np.uint8)
    is_finite = narrow(floats, len(values), BFLOAT16, skipped, stored)
    expected = torch.from_numpy(floats).to(torch.bfloat16)
    assert is_finite == bool(expected.isfinite().all())
    rounded = torch.from_numpy(stored).view(torch.bfloat16)[skipped:]
    if is_finite:
        assert torch.equal(rounded.view(torch.int16), expected.view(torch.int16))


@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=40))
def test_widening_is_exact(words: list[int]):
    stored = np.array(words, np.uint16).view(np.uint8)
    out = np.empty(len(words), np.float32)
    widen(stored, BFLOAT16, 0, len(words), out)
    expected = torch.from_numpy(stored).view(torch.bfloat16).float().numpy()
    assert np.array_equal(out.view(np.int32), expected.view(np.int32))
    again = np.empty_like(out)
    widen(out.view(np.uint8), FLOAT32, 0, len(words), again)
    assert np.array_equal(out.view(np.int32), again.view(np.int32))


@pytest.mark.parametrize("count", [1, LANES - 1, LANES, LANES + 1, 3 * LANES + 5])
def test_lanes_add_up_to_the_sum(count: int):
    generator = np.random.default_rng(0)
    one, two = (generator.standard_normal(count).astype(np.float32) for _ in range(2))
    products, values = np.zeros(LANES), np.zeros(LANES)
    add_products(one, two, count, products)
    add_values(one, count, values)
    assert products.sum() == pytest.approx(np.dot(one.astype(float), two.astype(float)))
    assert values.sum() == pytest.approx(one.astype(float).sum())
    assert products[-1] == pytest.approx(
        sum(float(one[i]) * float(two[i]) for i in range(LANES - 1, count, LANES))
    )


@pytest.mark.parametrize("dtype", [d for d in DType if d.is_floating_point], ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_found(dtype: DType, bad: float):
    values = torch.tensor([1.0, bad, -2.0, 0.0], dtype=dtype.torch)
    found = finite(values.view(torch.uint8).numpy(), dtype)
    assert found.tolist() == [True, False, True, True]
