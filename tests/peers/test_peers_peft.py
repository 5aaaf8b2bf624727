"""Our `peft` dialect against PEFT's merge functions, which compute in float64 here."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, tensor

from nan_merge.random import uniform
from tests.method_reference import draw, merge_whole, options_of

peft = pytest.importorskip(
    "peft.utils.merge_utils", reason="peft is not installed (requirements/peers.txt)"
)

SHAPES = [(), (1,), (7,), (5, 1), (1, 6), (1, 1), (4, 9), (3, 4, 5), (2, 65), (40, 50)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
WEIGHTS = [0.3, 0.9, 0.5]


def vectors_of(base: Tensor, tuned: list[Tensor]) -> list[Tensor]:
    return [t.double() - base.double() for t in tuned]


def assert_same(merged: Tensor, base: Tensor, update: Tensor, tolerance: float = 2.5e-7) -> None:
    expected = base.double() + update
    torch.testing.assert_close(merged.double(), expected, rtol=tolerance, atol=tolerance)


@shapes
@pytest.mark.parametrize("elect", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.2, 0.7, 1.0])
@pytest.mark.filterwarnings("ignore:The density")
def test_ties(shape: tuple[int, ...], elect: str, density: float):
    base, tuned = draw(shape, 3)
    update = peft.ties(vectors_of(base, tuned), torch.tensor(WEIGHTS).double(), density, elect)
    options = options_of("ties", dialect="peft", density=density, elect=elect)
    assert_same(merge_whole(options, base, tuned, WEIGHTS), base, update)


@pytest.mark.filterwarnings("ignore:The density")
def test_ties_sends_a_tied_vote_to_plus_and_weighs_after_it():
    base, tuned = torch.zeros(3), [tensor([1.0, 2.0, -1.0]), tensor([-1.0, -3.0, -1.0])]
    for weights in ([1.0, 1.0], [9.0, 1.0], [-1.0, 0.5]):
        update = peft.ties(vectors_of(base, tuned), torch.tensor(weights).double(), 1.0)
        options = options_of("ties", dialect="peft", density=1.0)
        assert_same(merge_whole(options, base, tuned, weights), base, update)


def test_ties_of_a_tensor_too_small_for_the_density_keeps_nothing():
    base, tuned = draw((4,), 2)
    update = peft.ties(vectors_of(base, tuned), torch.ones(2).double(), 0.2)
    assert int(update.count_nonzero()) == 0
    merged = merge_whole(options_of("ties", dialect="peft"), base, tuned, [1.0, 1.0])
    assert torch.equal(merged, base)


def our_bernoulli() -> object:
    count: Iterator[int] = iter(range(100))

    def bernoulli(chances: Tensor) -> Tensor:
        draws = uniform(5, f"model{next(count)}", "weight", 0, chances.numel())
        return (draws.view(chances.shape) < chances.float()).to(chances.dtype)

    return bernoulli


@shapes
def test_dare_linear(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    base, tuned = draw(shape, 3)
    monkeypatch.setattr(torch, "bernoulli", our_bernoulli())
    update = peft.dare_linear(vectors_of(base, tuned), torch.tensor(WEIGHTS).double(), 0.4)
    for dialect in ("peft", "paper", "fusionbench"):  # one formula
        options = options_of("dare_linear", dialect=dialect, density=0.4)
        assert_same(merge_whole(options, base, tuned, WEIGHTS), base, update)


@shapes
@pytest.mark.parametrize("elect", ["total", "frequency"])
def test_dare_ties(shape: tuple[int, ...], elect: str, monkeypatch: pytest.MonkeyPatch):
    base, tuned = draw(shape, 3)
    monkeypatch.setattr(torch, "bernoulli", our_bernoulli())
    update = peft.dare_ties(vectors_of(base, tuned), torch.tensor(WEIGHTS).double(), 0.4, elect)
    options = options_of("dare_ties", dialect="peft", density=0.4, elect=elect)
    assert_same(merge_whole(options, base, tuned, WEIGHTS), base, update)


@shapes
def test_task_arithmetic(shape: tuple[int, ...]):
    base, tuned = draw(shape, 3)
    update = peft.task_arithmetic(vectors_of(base, tuned), torch.tensor(WEIGHTS).double())
    merged = merge_whole(options_of("task_arithmetic"), base, tuned, WEIGHTS)
    assert_same(merged, base, update)
