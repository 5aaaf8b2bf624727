import numpy as np
import pytest
import torch

from nan_merge.random import stream_key, uniform

# Numbers drawn once and for all: a change here changes every merge that drops elements.
KEY = (10287354085193543441, 5514472663903396136)
BITS = [2104115, 8993858, 3016887, 5025336, 7204707, 12505314, 15140859, 451957]


def bits(*place: int, name: tuple[int, str, str] = (0, "math", "layers.0.weight")) -> list[int]:
    return (uniform(*name, *place) * 2**24).long().tolist()


def test_golden_vectors():
    assert stream_key(0, "math", "layers.0.weight") == KEY
    assert bits(0, 8) == BITS
    assert bits(10**13, 4, name=(3, "m", "t")) == [5152932, 4792265, 6223751, 5647767]


def test_draws_are_the_leading_bits_of_philox_words():
    words = np.random.Philox(key=np.array(KEY, dtype=np.uint64)).random_raw(4).view(np.uint32)
    assert (words >> 8).tolist() == BITS


@pytest.mark.parametrize("start", [0, 1, 7, 8, 9, 64, 99])
def test_any_piece_can_be_drawn_alone(start: int):
    whole = uniform(1, "a", "b", 0, 100)
    assert torch.equal(uniform(1, "a", "b", start, 100 - start), whole[start:])
    assert uniform(1, "a", "b", start, 0).shape == (0,)


def test_seed_model_and_tensor_give_other_draws():
    names = [
        (0, "a", "b"),
        (1, "a", "b"),
        (0, "b", "a"),
        (0, "ab", ""),
        (0, "", "ab"),
        (0, "a", "c"),
    ]
    assert len({tuple(bits(0, 4, name=name)) for name in names}) == len(names)


def test_draws_are_uniform():
    draws = uniform(2, "a", "b", 3, 1_000_000).double()
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(float(draws.mean()) - 0.5) < 4 * (1 / 12) ** 0.5 / 1000
    shares = torch.histc(draws, bins=10, min=0, max=1) / 1e6
    assert float((shares - 0.1).abs().max()) < 4 * 0.3 / 1000
