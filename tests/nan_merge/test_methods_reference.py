"""The `paper` dialects against slow float64 versions of the papers' equations."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from nan_merge.methods.ranks import kth_smallest, magnitude_ranks
from nan_merge.random import uniform
from tests.method_reference import draw, merge_whole, options_of

SHAPES = [(), (1,), (7,), (5, 1), (1, 6), (4, 9), (3, 4, 5), (2, 65)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
WEIGHTS = [0.3, 0.9, 0.5]


def rows_of(tensor: Tensor) -> np.ndarray:
    columns = tensor.shape[-1] if tensor.dim() else 1
    return tensor.double().reshape(-1, columns).numpy()


def vectors_of(base: Tensor, tuned: Sequence[Tensor]) -> list[np.ndarray]:
    return [rows_of(tensor - base) for tensor in tuned]


def check(merged: Tensor, base: Tensor, update: np.ndarray) -> None:
    expected = rows_of(base) + update
    np.testing.assert_allclose(rows_of(merged), expected, rtol=2.5e-7, atol=2.5e-7)


def elect_and_average(vectors: Sequence[np.ndarray], majority: float = 1.0) -> np.ndarray:
    """TIES, Algorithm 1, steps 2 and 3, with the coefficients inside the vectors."""
    update = np.zeros_like(vectors[0])
    for place in np.ndindex(update.shape):
        values = [vector[place] for vector in vectors]
        sign = np.sign(sum(values)) or majority
        agreeing = [value for value in values if value != 0 and np.sign(value) == sign]
        update[place] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return update


def magprune(vector: np.ndarray, model: int, density: float, epsilon: float) -> np.ndarray:
    """DELLA, Section 3.1: chances by rank in the row, then division by the chance."""
    draws = uniform(5, f"model{model}", "weight", 0, vector.size).double().numpy()
    pruned = np.zeros_like(vector)
    for row, values in enumerate(vector):
        for column, value in enumerate(values):
            rank = int((np.abs(values) < abs(value)).sum())
            share = rank / (len(values) - 1) if len(values) > 1 else 0.5
            chance = density - epsilon + share * 2 * epsilon
            if draws[row * len(values) + column] < chance:
                pruned[row, column] = value / chance
    return pruned


@shapes
@pytest.mark.parametrize("name", ["della_linear", "della_ties"])
def test_della(name: str, shape: tuple[int, ...]):
    base, tuned = draw(shape, 3)
    pruned = [magprune(v, i, 0.4, 0.3) * WEIGHTS[i] for i, v in enumerate(vectors_of(base, tuned))]
    update = sum(pruned) if name == "della_linear" else elect_and_average(pruned)
    options = options_of(name, density=0.4, epsilon=0.3)
    check(merge_whole(options, base, tuned, WEIGHTS), base, np.asarray(update))


@shapes
def test_dare_ties(shape: tuple[int, ...]):
    base, tuned = draw(shape, 3)
    dropped: list[np.ndarray] = []
    for place, vector in enumerate(vectors_of(base, tuned)):
        draws = uniform(5, f"model{place}", "weight", 0, vector.size).numpy()
        dropped.append(vector * (draws < 0.4).reshape(vector.shape) / 0.4 * WEIGHTS[place])
    options = options_of("dare_ties", density=0.4)
    check(merge_whole(options, base, tuned, WEIGHTS), base, elect_and_average(dropped))


@shapes
@pytest.mark.parametrize("density", [0.2, 1.0])
def test_ties(shape: tuple[int, ...], density: float):
    base, tuned = draw(shape, 3)
    trimmed: list[np.ndarray] = []
    for weight, vector in zip(WEIGHTS, vectors_of(base, tuned), strict=True):
        magnitudes = np.sort(np.abs(vector), axis=None)
        lowest = magnitudes[max(vector.size - int(vector.size * density) - 1, 0)]
        trimmed.append(np.where(np.abs(vector) >= lowest, vector, 0) * weight)
    options = options_of("ties", density=density)
    check(merge_whole(options, base, tuned, WEIGHTS), base, elect_and_average(trimmed))


def keep_middle(vector: np.ndarray, density: float, gamma: float) -> np.ndarray:
    """Breadcrumbs, Section 3, of one row or one flattened tensor."""
    order = np.argsort(np.abs(vector))
    last = vector.size - int(gamma * vector.size)
    kept = order[max(last - max(int(density * vector.size), 1), 0) : last]
    masked = np.zeros_like(vector)
    masked[kept] = vector[kept]
    return masked


@shapes
@pytest.mark.parametrize("rows", [False, True])
def test_breadcrumbs(shape: tuple[int, ...], rows: bool):
    base, tuned = draw(shape, 3)
    update = np.zeros_like(rows_of(base))
    for weight, vector in zip(WEIGHTS, vectors_of(base, tuned), strict=True):
        parts = vector if rows else vector.reshape(1, -1)
        kept = np.stack([keep_middle(part, 0.3, 0.2) for part in parts])
        update += weight * kept.reshape(vector.shape)
    options = options_of("breadcrumbs", density=0.3, gamma=0.2, rows=rows)
    check(merge_whole(options, base, tuned, WEIGHTS), base, update)


@shapes
@pytest.mark.parametrize("density", [1.0, 0.4])
def test_sce(shape: tuple[int, ...], density: float):
    base, tuned = draw(shape, 3)
    shares = [0.5, 0.2, 0.3]
    vectors = np.stack(vectors_of(base, tuned))
    variance = vectors.var(axis=0)
    kept = variance.size if density == 1 else int((variance > 0).sum() * density)
    selected = np.zeros(variance.size)
    selected[np.argsort(-variance, axis=None)[:kept]] = 1
    vectors = vectors * selected.reshape(variance.shape)
    weights = [share * float((v**2).sum()) for share, v in zip(shares, vectors, strict=True)]
    update = np.zeros_like(variance)
    for place in np.ndindex(variance.shape):
        values = vectors[(slice(None), *place)]
        sign = 1.0 if values.sum() >= 0 else -1.0
        pairs = [(w, x) for w, x in zip(weights, values, strict=True) if x * sign > 0]
        if pairs:
            update[place] = sum(w * x for w, x in pairs) / sum(w for w, _ in pairs)
    merged = merge_whole(options_of("sce", density=density), base, tuned, shares)
    check(merged, base, update)


def test_kept_elements_are_those_of_a_sort_with_many_ties():
    """Ranks and thresholds on bfloat16-like numbers, of which many are equal."""
    generator = torch.Generator().manual_seed(3)
    vector = (torch.randn(64, 33, generator=generator) * 4).round() / 4
    order = vector.abs().numpy().argsort(axis=1, kind="stable").argsort(axis=1)
    assert np.array_equal(magnitude_ranks(vector, -1).numpy(), order)
    assert np.array_equal(magnitude_ranks(vector.T.contiguous(), 0).numpy(), order.T)
    ordered = vector.sort(dim=1).values
    low, high = kth_smallest(vector, [1, 33])
    assert torch.equal(low, ordered[:, :1]) and torch.equal(high, ordered[:, 32:])
