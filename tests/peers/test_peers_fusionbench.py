"""Our `paper` and `fusionbench` dialects against FusionBench, which computes in float64 here.

FusionBench's TIES is that of the paper's authors and of AdaMerging: `merge_func` tells them apart.
"""

from itertools import combinations

import pytest
import torch
from torch import Tensor, tensor

from nan_merge.random import uniform
from tests.method_reference import draw, majority_of, merge_whole, options_of, thresholds_of

REASON = "fusion-bench is not installed (requirements/peers.txt)"
ties_utils = pytest.importorskip(
    "fusion_bench.method.ties_merging.ties_merging_utils", reason=REASON
)
dare_utils = pytest.importorskip("fusion_bench.method.dare.utils", reason=REASON)
slerp_utils = pytest.importorskip("fusion_bench.method.slerp.slerp_utils", reason=REASON)
stock = pytest.importorskip("fusion_bench.method.model_stock.model_stock", reason=REASON)

SHAPES = [(), (1,), (7,), (5, 1), (1, 6), (1, 1), (4, 9), (3, 4, 5), (2, 65), (40, 50)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def assert_same(merged: Tensor, expected: Tensor, tolerance: float = 2.5e-7) -> None:
    torch.testing.assert_close(merged.double(), expected.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dialect", "merge_func"), [("paper", "mean"), ("fusionbench", "sum")])
@pytest.mark.parametrize("density", [0.2, 0.73])
def test_ties_over_a_whole_model(dialect: str, merge_func: str, density: float):
    models = [draw(shape, 3, seed) for seed, shape in enumerate(SHAPES)]
    base = torch.cat([start.flatten() for start, _ in models])
    tuned = [torch.cat([ends[place].flatten() for _, ends in models]) for place in range(3)]
    flat = torch.stack([t.double() - base.double() for t in tuned])
    update = ties_utils.ties_merging(flat, reset_thresh=density * 100, merge_func=merge_func)
    expected = (base.double() + 0.3 * update).split([ends[0].numel() for _, ends in models])
    options, weights = options_of("ties", dialect=dialect, density=density), [0.3] * 3
    thresholds = thresholds_of(options, base, tuned)
    majority = majority_of(options, base, tuned, weights, thresholds)
    known = {"thresholds": thresholds, "majority_sign": majority}
    for (start, ends), part in zip(models, expected, strict=True):
        merged = merge_whole(options, start, ends, weights, **known)
        assert_same(merged.flatten(), part)


@pytest.mark.parametrize(("dialect", "merge_func"), [("paper", "mean"), ("fusionbench", "sum")])
@pytest.mark.parametrize("first", [[1.0, 1.0, 1.0], [1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]])
def test_ties_gives_a_tied_vote_to_the_majority_and_a_tied_majority_to_minus(
    dialect: str, merge_func: str, first: list[float]
):
    base, tuned = torch.zeros(3), [tensor(first), tensor([*first[:2], -1.0])]
    update = ties_utils.ties_merging(torch.stack(tuned).double(), 0.34, merge_func)
    options = options_of("ties", dialect=dialect, density=0.34)  # all are tied, so all are kept
    assert_same(merge_whole(options, base, tuned, [1.0, 1.0]), update)


@shapes
def test_dare_linear(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    base, tuned = draw(shape, 3)
    count = iter(range(3))

    def rand_like(like: Tensor) -> Tensor:  # FusionBench keeps what is above the drop rate
        draws = uniform(5, f"model{next(count)}", "weight", 0, like.numel())
        return (1 - draws).view(like.shape)

    monkeypatch.setattr(torch, "rand_like", rand_like)
    vectors = [t.double() - base.double() for t in tuned]
    for vector in vectors:
        dare_utils.param_random_drop_(vector, 0.6, rescale=True)
    expected = base.double() + 0.3 * sum(vectors)
    options = options_of("dare_linear", dialect="fusionbench", density=0.4)
    assert_same(merge_whole(options, base, tuned, [0.3] * 3), expected)


@shapes
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp(shape: tuple[int, ...], t: float):
    first, second = draw(shape, 1)[0], draw(shape, 1, seed=9)[0]
    expected = slerp_utils.slerp(t, first.double(), second.double())
    assert_same(merge_whole(options_of("slerp"), None, [first, second], [1 - t, t]), expected)


@shapes
@pytest.mark.parametrize("num_models", [2, 3, 4])
def test_model_stock(shape: tuple[int, ...], num_models: int, monkeypatch: pytest.MonkeyPatch):
    # FusionBench adds 1e-8 to the product of norms, which turns vectors of length 0.03 that are
    # parallel by a quarter of a degree. We don't.
    monkeypatch.setattr(stock, "EPS", 0.0)
    base, tuned = draw(shape, num_models)
    states = [{"weight": t.double()} for t in tuned]
    start = {"weight": base.double()}
    angles = [stock.compute_angle(a, b, start)["weight"] for a, b in combinations(states, 2)]
    ratio = stock.compute_ratio({"weight": sum(angles) / len(angles)}, k=num_models)["weight"]
    mean = sum(state["weight"] for state in states) / num_models
    options = options_of("model_stock", dialect="fusionbench")
    merged = merge_whole(options, base, tuned, [1 / num_models] * num_models)
    expected = ratio * mean + (1 - ratio) * base.double()
    if num_models == 3 and base.numel() == 1:
        # Of three numbers two point one way and one the other: angles 0, 180 and 180, whose mean
        # of 120 degrees is the pole of t. FusionBench leaps there; here the base stays.
        assert float(expected.abs()) > 1e5
        assert torch.equal(merged, base)
    else:
        assert_same(merged, expected)  # its cosines are computed in float32
