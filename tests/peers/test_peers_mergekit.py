"""Our `mergekit` dialect against mergekit itself, which computes in float64 here."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, tensor

from nan_merge.methods.della import rank_shares
from nan_merge.random import uniform
from tests.method_reference import draw, merge_whole, options_of

merge_methods = pytest.importorskip(
    "mergekit.merge_methods", reason="mergekit is not installed (requirements/peers.txt)"
)

SHAPES = [(), (1,), (7,), (5, 1), (1, 6), (1, 1), (4, 9), (3, 4, 5), (2, 65), (40, 50)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
# Names that mergekit has, where ours differ.
THEIRS = {"average": "linear", "della_ties": "della"}
WEIGHTS = [0.3, 0.9, 0.5]
DENSITIES = (0.3, 0.5, 0.6)


def theirs(
    name: str, base: Tensor | None, tuned: Sequence[Tensor], dtype=torch.float64, **parameters: Any
) -> Tensor:
    """Lists among the parameters are one number per model."""
    ids = range(1, len(tuned) + 1)
    parameters = {
        key: dict(zip(ids, value, strict=True)) if isinstance(value, list | tuple) else value
        for key, value in parameters.items()
    }
    tensors = [t.to(dtype) for t in ([] if base is None else [base]) + list(tuned)]
    return merge_methods.merge_tensors(
        tensors,
        THEIRS.get(name, name),
        parameters=parameters,
        ids=([] if base is None else [0]) + list(ids),
        base_index=None if base is None else 0,
    )


def ours(
    name: str,
    base: Tensor | None,
    tuned: Sequence[Tensor],
    weights: Sequence[float],
    **options: Any,
) -> Tensor:
    return merge_whole(options_of(name, **options), base, tuned, weights)


def assert_same(one: Tensor, other: Tensor, tolerance: float = 2.5e-7) -> None:
    torch.testing.assert_close(one.double(), other.double(), rtol=tolerance, atol=tolerance)


@pytest.fixture
def our_draws(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let mergekit drop the elements that we drop: the n-th call is for the n-th model."""

    def patch(seed: int) -> None:
        count = iter(range(100))

        def bernoulli(chances: Tensor) -> Tensor:
            draws = uniform(seed, f"model{next(count)}", "weight", 0, chances.numel())
            return (draws.view(chances.shape) < chances.float()).to(chances.dtype)

        monkeypatch.setattr(torch, "bernoulli", bernoulli)

    return patch


@shapes
def test_average_and_task_arithmetic(shape: tuple[int, ...]):
    base, tuned = draw(shape, 3)
    shares = [weight / sum(WEIGHTS) for weight in WEIGHTS]
    assert_same(
        ours("average", None, tuned, shares), theirs("average", None, tuned, weight=WEIGHTS)
    )
    assert_same(
        ours("task_arithmetic", base, tuned, WEIGHTS),
        theirs("task_arithmetic", base, tuned, weight=WEIGHTS),
    )


@shapes
@pytest.mark.parametrize("normalize", [True, False])
def test_ties(shape: tuple[int, ...], normalize: bool):
    base, tuned = draw(shape, 3)
    options = {"dialect": "mergekit", "density": DENSITIES, "lambda": 0.7}
    expected = theirs(
        "ties",
        base,
        tuned,
        weight=WEIGHTS,
        density=DENSITIES,
        normalize=normalize,
        **{"lambda": 0.7},
    )
    disjoint = "weighted_mean" if normalize else "sum"
    assert_same(ours("ties", base, tuned, WEIGHTS, disjoint=disjoint, **options), expected)
    if normalize:  # the dialect's default
        assert_same(ours("ties", base, tuned, WEIGHTS, **options), expected)


def test_ties_with_a_negative_weight_and_a_tied_vote():
    base, tuned = tensor([0.0, 0.0, 0.0]), [tensor([1.0, 2.0, 1.0]), tensor([-1.0, 3.0, 1.0])]
    for weights in ([1.0, 1.0], [1.0, -1.0], [0.5, -0.25]):
        expected = theirs("ties", base, tuned, weight=weights, density=1.0)
        assert_same(ours("ties", base, tuned, weights, dialect="mergekit", density=1.0), expected)


def test_ties_keeps_every_element_tied_with_the_threshold_where_mergekit_keeps_some():
    """Elements of one magnitude cannot be told apart: only their number can be compared."""
    base, tuned = torch.zeros(10), [tensor([3.0, 1, 1, 1, 1, 1, 0, 0, 0, 2])]
    merged = ours("ties", base, tuned, [1.0], dialect="mergekit", density=0.4)
    expected = theirs("ties", base, tuned, weight=[1.0], density=0.4)
    assert int(expected.count_nonzero()) == 4  # exactly k: 3, 2 and any two of the five ones
    assert merged.tolist() == tuned[0].tolist()  # we keep 3, 2 and all five
    assert_same(merged[merged != 1], expected.float()[merged != 1])


@shapes
@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("rescale", [True, False])
def test_dare(name: str, shape: tuple[int, ...], rescale: bool, our_draws: Callable[[int], None]):
    base, tuned = draw(shape, 3)
    our_draws(5)
    expected = theirs(
        name, base, tuned, torch.float32, weight=WEIGHTS, density=DENSITIES, rescale=rescale
    )
    options = {"dialect": "mergekit", "density": DENSITIES, "rescale": rescale}
    assert_same(ours(name, base, tuned, WEIGHTS, **options), expected)


def test_dare_rescales_by_the_sum_of_magnitudes_which_is_not_the_paper(
    our_draws: Callable[[int], None],
):
    """Mergekit's factor depends on what was drawn; the paper's (Section 3.2) is 1 / density."""
    base, tuned = torch.zeros(40), [torch.linspace(1, 2, 40)]
    paper = ours("dare_linear", base, tuned, [1.0], density=0.3)
    assert_same(
        paper[paper != 0] / tuned[0][paper != 0], torch.full((int((paper != 0).sum()),), 1 / 0.3)
    )
    our_draws(5)
    mergekit = theirs("dare_linear", base, tuned, torch.float32, weight=[1.0], density=0.3)
    assert float(mergekit.sum()) == pytest.approx(float(tuned[0].sum()), rel=1e-6)
    assert float((mergekit[paper != 0] / paper[paper != 0] - 1).abs().min()) > 0.01


# mergekit 0.1.5 fails on a row of one element, see below.
@pytest.mark.parametrize("shape", [(7,), (1, 6), (4, 9), (3, 4, 5), (2, 65), (40, 50)], ids=str)
@pytest.mark.parametrize("name", ["della_linear", "della_ties"])
def test_della(name: str, shape: tuple[int, ...], our_draws: Callable[[int], None]):
    base, tuned = draw(shape, 3)
    our_draws(5)
    densities = [0.3, 0.5, 0.6]
    options = {"dialect": "mergekit", "density": tuple(densities), "epsilon": 0.2}
    expected = theirs(
        name, base, tuned, torch.float32, weight=WEIGHTS, density=densities, epsilon=[0.2] * 3
    )
    assert_same(ours(name, base, tuned, WEIGHTS, **options), expected)


@pytest.mark.parametrize("shape", [(), (1,), (5, 1)], ids=str)
def test_della_of_single_elements_works_here_and_not_in_mergekit(shape: tuple[int, ...]):
    """Mergekit divides 0 by 0 where a row has one element, and finds no axis in a scalar; we keep
    the element with chance `density`."""
    base, tuned = draw(shape, 2)
    with pytest.raises((RuntimeError, IndexError)):
        theirs("della_linear", base, tuned, weight=[1.0, 1.0], density=0.5)
    options = {"dialect": "mergekit", "density": 0.5}
    assert bool(ours("della_linear", base, tuned, [1.0, 1.0], **options).isfinite().all())


def test_della_ranks_in_float32_here_and_in_bfloat16_in_mergekit():
    """4,096 ranks are 704 different numbers in bfloat16, so most neighbours share a chance."""
    vector = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0)).bfloat16()
    theirs_ranks = vector.abs().argsort(dim=1).argsort(dim=1).to(torch.bfloat16) + 1
    assert len(theirs_ranks.unique()) == 704
    assert len(rank_shares(vector.float(), -1).unique()) == 4096


def test_bfloat16_is_rounded_once_here_and_at_every_step_in_mergekit():
    base, tuned = draw((5000,), 8)
    base, tuned = base.bfloat16(), [tensor.bfloat16() for tensor in tuned]
    weights = [0.3] * 8
    expected = theirs("task_arithmetic", base, tuned, weight=weights).bfloat16()
    merged = ours("task_arithmetic", base.float(), [t.float() for t in tuned], weights).bfloat16()
    mergekit = theirs("task_arithmetic", base, tuned, torch.bfloat16, weight=weights)
    assert int((merged != expected).sum()) < 10  # float64, rounded once
    assert int((mergekit != expected).sum()) > 100


@shapes
@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize("gamma", [0.01, 0.3])
def test_breadcrumbs(name: str, shape: tuple[int, ...], gamma: float):
    base, tuned = draw(shape, 3)
    expected = theirs(name, base, tuned, weight=WEIGHTS, density=[0.2, 0.5, 0.9], gamma=[gamma] * 3)
    options = {"dialect": "mergekit", "density": (0.2, 0.5, 0.9), "gamma": gamma}
    assert_same(ours(name, base, tuned, WEIGHTS, **options), expected)


@shapes
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp(shape: tuple[int, ...], t: float):
    first, second = draw(shape, 1)[0], draw(shape, 1, seed=9)[0]
    expected = theirs("slerp", first, [second], t=t)
    assert_same(ours("slerp", None, [first, second], [1 - t, t]), expected)


def test_slerp_of_nearly_parallel_and_of_zero_tensors():
    base, (near,) = draw((30,), 1)
    zero, close = torch.zeros(30), base + 1e-3 * near
    for first, second in [(base, close), (base, -close), (zero, base), (base, zero), (zero, zero)]:
        expected = theirs("slerp", first, [second], t=0.3)
        assert_same(ours("slerp", None, [first, second], [0.7, 0.3]), expected)


@shapes
@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize(
    ("vectors", "flags"),
    [
        ("tensor", {}),
        ("row", {"nuslerp_flatten": False}),
        ("column", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ],
    ids=["tensor", "row", "column"],
)
def test_nuslerp(shape: tuple[int, ...], with_base: bool, vectors: str, flags: dict[str, bool]):
    base, tuned = draw(shape, 2)
    start = base if with_base else None
    expected = theirs("nuslerp", start, tuned, weight=[0.6, 1.4], **flags)
    assert_same(ours("nuslerp", start, tuned, [0.3, 0.7], vectors=vectors), expected)


@shapes
@pytest.mark.parametrize("num_models", [2, 3, 4])
@pytest.mark.parametrize("vectors", ["tensor", "row"])
def test_model_stock(shape: tuple[int, ...], num_models: int, vectors: str):
    base, tuned = draw(shape, num_models)
    expected = theirs("model_stock", base, tuned, filter_wise=vectors == "row")
    merged = ours("model_stock", base, tuned, [1 / num_models] * num_models, vectors=vectors)
    # t = N cos / (1 + (N - 1) cos) has a pole, near which rounding of the cosine is enlarged.
    assert_same(merged, expected)


def test_model_stock_of_small_task_vectors_is_right_here_and_not_in_mergekit():
    """Mergekit divides by at least 1e-6 where the product of the norms belongs."""
    base = torch.zeros(2)
    tuned = [tensor([1e-4, 0.0]), tensor([0.8e-4, 0.6e-4])]  # cosine 0.8, so t = 1.6 / 1.8
    mean = tensor([0.9e-4, 0.3e-4])
    merged = ours("model_stock", base, tuned, [0.5, 0.5])
    torch.testing.assert_close(merged, mean * (1.6 / 1.8), rtol=1e-5, atol=0)
    expected = theirs("model_stock", base, tuned).float()  # cosine 0.8e-8 / 1e-6 = 0.008
    torch.testing.assert_close(expected, mean * (0.016 / 1.008), rtol=1e-4, atol=0)


@shapes
@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
def test_sce(shape: tuple[int, ...], density: float):
    base, tuned = draw(shape, 3)
    expected = theirs("sce", base, tuned, select_topk=density)
    merged = ours("sce", base, tuned, [1 / 3] * 3, density=density, dialect="mergekit")
    assert_same(merged, expected)


def test_sce_of_small_task_vectors_weighs_by_square_in_paper_and_alike_in_mergekit():
    base, tuned = torch.zeros(1), [tensor([1e-4]), tensor([2e-4])]
    expected = theirs("sce", base, tuned)
    assert float(expected) == pytest.approx(1.5e-4)  # mean squares sum to 5e-8, below 1e-6
    assert_same(ours("sce", base, tuned, [0.5, 0.5], dialect="mergekit"), expected, 1e-10)
    paper = ours("sce", base, tuned, [0.5, 0.5])
    assert float(paper) == pytest.approx((1 * 1e-4 + 4 * 2e-4) / 5)


@shapes
def test_passthrough(shape: tuple[int, ...]):
    _, (tuned,) = draw(shape, 1)
    assert torch.equal(ours("passthrough", None, [tuned], [1.0]), tuned)
    assert_same(
        ours("passthrough", None, [tuned], [0.3]), theirs("passthrough", None, [tuned], scale=[0.3])
    )
