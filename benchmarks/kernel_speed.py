"""Nanoseconds per element of each compiled kernel, and of torch or numpy doing the same.

    python benchmarks/kernel_speed.py

A run of 262,144 elements of a base and two fine-tunes in bfloat16, in memory; the best of many
calls on one core, because anything slower was something else on the machine. The other column is
torch for merging and numpy for draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from nan_merge.kernels.combine import DIVIDE, MEAN, PLAIN_SUM, combine
from nan_merge.kernels.convert import BFLOAT16, BLOCK
from nan_merge.kernels.inner_products import add_inner_products
from nan_merge.kernels.kept_sums import add_magnitudes
from nan_merge.kernels.lanes import LANES
from nan_merge.kernels.magnitudes import count_coarse, count_fine
from nan_merge.kernels.philox import fill_draws
from nan_merge.kernels.signs import count_elected
from nan_merge.kernels.vectors import SCRATCH_ROWS
from nan_merge.methods import METHODS, Context

ELEMENTS, MODELS = 1 << 18, 2
CALLS = 30
RESULTS = 12
TORCH_BLOCK = 1 << 16


def best(call: Callable[[], object]) -> float:
    """Nanoseconds per element of the fastest call."""
    call()
    seconds: list[float] = []
    for _ in range(CALLS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds) / ELEMENTS * 1e9


def by_torch(models: list[torch.Tensor], name: str, **options: object) -> Callable[[], None]:
    """The torch function of a method on the same run, block by block."""
    row = METHODS[name]
    chosen = row.options.model_validate({"name": name, **options})
    context = Context(tensor="w", models=("a", "b"), thresholds=(0.002, 0.002))

    def call() -> None:
        for first in range(0, ELEMENTS, TORCH_BLOCK):
            base, *tuned = (model[first : first + TORCH_BLOCK].float() for model in models)
            row.merge(base, tuned, (0.5, 0.5), chosen, context).to(torch.bfloat16)

    return call


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(ELEMENTS, generator=generator) * 0.02
    changes = [torch.randn(ELEMENTS, generator=generator) * 0.002 for _ in range(MODELS)]
    models = [tensor.bfloat16() for tensor in (base, *(base + change for change in changes))]
    rows = torch.stack(models).view(torch.uint8).numpy()
    codes = np.full(len(models), BFLOAT16)
    scratch = np.empty((1 + MODELS + SCRATCH_ROWS, BLOCK), np.float32)
    out = np.empty((RESULTS, 2 * ELEMENTS), np.uint8)
    finite = np.empty(RESULTS, np.uint8)
    half, ones, none = (np.full(MODELS, value, np.float32) for value in (0.5, 1.0, 0.0))
    small = np.full(MODELS, 0.002, np.float32)
    keys = np.array([[1, 2], [3, 4]], np.uint64)
    products = np.zeros((2, MODELS, MODELS + 1, LANES))
    sums = np.zeros((MODELS, 2, LANES))
    coarse = np.zeros((2, MODELS, 1 << 15), np.int64)
    fine = np.zeros((MODELS, 1, 1 << 16), np.int64)
    bins = np.full((MODELS, 1), int(np.float32(0.002).view(np.int32)) >> 16)

    def merging(
        thresholds: np.ndarray, densities: np.ndarray, how: int, results: int = 1
    ) -> Callable[[], object]:
        numbers = np.stack([np.stack([half, thresholds, densities, half])] * results)
        switches = np.array([[1, how, 1, 0, DIVIDE, BFLOAT16]] * results)
        signs, all_keys = np.ones((results, 2), np.float32), np.stack([keys] * results)
        return lambda: combine(
            rows, codes, 1, 0, ELEMENTS, numbers, all_keys, switches, signs, scratch,
            out[:results], finite[:results],
        )  # fmt: skip

    def norms(all_pairs: bool) -> Callable[[], object]:
        return lambda: add_inner_products(
            rows, codes, 1, ELEMENTS, all_pairs, True, all_pairs, scratch, products
        )

    kernels: dict[str, Callable[[], object]] = {
        "task arithmetic": merging(none, ones, PLAIN_SUM),
        f"the same, {RESULTS} results": merging(none, ones, PLAIN_SUM, RESULTS),
        "TIES": merging(small, ones, MEAN),
        "DARE-TIES": merging(none, half, MEAN),
        "norms of task vectors": norms(False),
        "all inner products": norms(True),
        "coarse counts": lambda: count_coarse(rows, codes, ELEMENTS, scratch, coarse),
        "fine counts": lambda: count_fine(rows, codes, ELEMENTS, bins, scratch, fine),
        "elected signs": lambda: count_elected(
            rows, codes, ELEMENTS, half, small, True, False, scratch
        ),
        "kept sums": lambda: add_magnitudes(rows, codes, 0, ELEMENTS, half, keys, scratch, sums),
    }
    draws = np.empty(ELEMENTS, np.float32)
    numpys = np.random.Generator(np.random.Philox(key=keys[0]))
    kernels["draws"] = lambda: fill_draws(keys[0, 0], keys[0, 1], 0, ELEMENTS, draws)
    others = {
        "draws": lambda: numpys.random(out=draws, dtype=np.float32),
        "task arithmetic": by_torch(models, "task_arithmetic"),
        "TIES": by_torch(models, "ties"),
        "DARE-TIES": by_torch(models, "dare_ties", disjoint="mean"),
    }
    print(f"{'':24}{'kernel':>8}{'other':>8}   ns per element, {MODELS} models and a base")
    for name, call in kernels.items():
        beside = f"{best(others[name]):8.2f}" if name in others else ""
        print(f"{name:24}{best(call):8.2f}{beside}", flush=True)


if __name__ == "__main__":
    main()
