import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nan_merge.random import stream_key, uniform

KEY = (10287354085193543441, 5514472663903396136)
GOLDEN = [6861931, 13924620, 8302430, 11985352, 14394084, 14741144, 2599415, 16104611]
GOLDEN_FAR = [4595754, 11953938, 14860474, 6593384]


def bits(*place: int, name: tuple[int, str, str] = (0, "math", "layers.0.weight")) -> list[int]:
    return (uniform(*name, *place) * 2**24).long().tolist()


def philox(key: int, counter: int) -> list[int]:
    """Philox4x32-10 as its paper writes it (Salmon et al. 2011, Section 3.3), word by word."""
    k_0, k_1 = key & 0xFFFFFFFF, key >> 32
    words = [counter >> shift & 0xFFFFFFFF for shift in (0, 32, 64, 96)]
    for _ in range(10):
        one, two = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        words = [
            two >> 32 ^ words[1] ^ k_0,
            two & 0xFFFFFFFF,
            one >> 32 ^ words[3] ^ k_1,
            one & 0xFFFFFFFF,
        ]
        k_0, k_1 = k_0 + 0x9E3779B9 & 0xFFFFFFFF, k_1 + 0xBB67AE85 & 0xFFFFFFFF
    return words


def test_the_reference_gives_the_known_answers_of_the_generators_authors():
    ones = 2**128 - 1
    assert philox(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox(ones & 2**64 - 1, ones) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = (0x299F31D0_A4093822, 0x03707344_13198A2E_85A308D3_243F6A88)
    assert philox(*pi) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]


def test_golden_vectors():
    # A change here changes every merge that drops elements.
    assert stream_key(0, "math", "layers.0.weight") == KEY
    assert bits(0, 8) == GOLDEN
    assert bits(10**13, 4, name=(3, "m", "t")) == GOLDEN_FAR


@given(st.integers(0, 2**62), st.integers(1, 30), st.text(max_size=3))
def test_draws_are_the_leading_bits_of_philox_words(start: int, count: int, model: str):
    key, upper = stream_key(0, model, "w")
    expected = [
        philox(key, upper << 64 | place // 4)[place % 4] >> 8
        for place in range(start, start + count)
    ]
    assert bits(start, count, name=(0, model, "w")) == expected


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
