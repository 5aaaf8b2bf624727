"""The dev split: whole clusters, by a hash that nothing else changes."""

import pytest

from nan_merge.errors import ConfigError
from pipelines.split import dev_part, everything, held_out_part, refuse_empty_parts

CLUSTERS = [f"font {number}" for number in range(2000)]


def test_every_cluster_is_on_one_side():
    dev, rest = dev_part(0.3), held_out_part(0.3)
    assert all(dev(cluster) != rest(cluster) for cluster in CLUSTERS)
    assert all(map(everything, CLUSTERS))


def test_the_share_is_about_what_was_asked():
    # 2,000 independent draws of 0.3: five standard deviations are 0.051.
    assert abs(sum(map(dev_part(0.3), CLUSTERS)) / 2000 - 0.3) < 0.051


def test_a_smaller_split_lies_within_a_larger_one():
    small, large = dev_part(0.2), dev_part(0.4)
    assert all(large(cluster) for cluster in CLUSTERS if small(cluster))


def test_the_sides_of_known_clusters_never_change():
    assert [dev_part(0.5)(cluster) for cluster in ("a", "b", "c", "字", "")] == [
        False,
        True,
        False,
        False,
        True,
    ]


def test_a_benchmark_without_one_side_is_named():
    inside = next(cluster for cluster in CLUSTERS if dev_part(0.3)(cluster))
    outside = next(cluster for cluster in CLUSTERS if not dev_part(0.3)(cluster))
    refuse_empty_parts({"good": [inside, outside]}, 0.3)
    with pytest.raises(ConfigError) as caught:
        refuse_empty_parts({"good": CLUSTERS, "a": [inside], "b": [outside, outside]}, 0.3)
    assert str(caught.value) == (
        "sweep.dev_share: with 0.3, a has nothing but dev samples (its 1 sources); b has no dev "
        "samples (its 1 sources). Whole sources of samples go to one side. Choose another share, "
        "or evaluate more samples."
    )
