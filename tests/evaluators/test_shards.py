import pytest

from evaluators.shards import pack_shards


def test_samples_of_one_prefix_follow_each_other():
    assert pack_shards(["a", "b", "a", "c", "b", "a"], 100) == [[0, 2, 5, 1, 4, 3]]


def test_a_group_that_fits_is_never_cut():
    # a and b have three each: both do not fit five, so b begins a shard of its own; c joins it.
    assert pack_shards(list("aaabbbcc"), 5) == [[0, 1, 2], [3, 4, 5, 6, 7]]


def test_a_group_that_is_too_large_is_cut_into_full_shards():
    assert pack_shards([None] * 7, 3) == [[0, 1, 2], [3, 4, 5], [6]]


def test_every_sample_is_in_one_shard_and_none_is_too_large():
    prefixes = [number * number % 11 for number in range(200)]
    shards = pack_shards(prefixes, 16)
    assert sorted(place for shard in shards for place in shard) == list(range(200))
    assert max(map(len, shards)) <= 16
    assert pack_shards([], 16) == []


def test_a_shard_of_no_samples_is_refused():
    with pytest.raises(ValueError, match="at least one sample, got 0"):
        pack_shards(["a"], 0)
