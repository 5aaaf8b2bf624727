import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nan_merge.checkpoint import open_checkpoint
from nan_merge.errors import CheckpointError
from nan_merge.inner_products import WantedProducts, measure_norms
from nan_merge.kernels.magnitudes import FINE_BITS
from nan_merge.measure import measure
from nan_merge.methods.ties import kept_rank
from nan_merge.norms import sum_norms
from nan_merge.plan import align, plan_merge
from nan_merge.recipe import MergeRecipe
from nan_merge.statistics import (
    bits_to_float,
    count_magnitudes,
    find_rank,
    tensor_thresholds,
)
from nan_merge.tasks import run_serially


def aligned(family: dict[str, str]):
    opened = [open_checkpoint(path, name) for name, path in family.items()]
    return align(opened[0], opened[1:])


def flat(path: str) -> np.ndarray:
    from safetensors.torch import load_file

    tensors = load_file(f"{path}/model.safetensors")
    floats = [tensors[name] for name in sorted(tensors) if tensors[name].is_floating_point()]
    return torch.cat([tensor.flatten() for tensor in floats]).numpy()


def only(path: str, name: str) -> np.ndarray:
    from safetensors.torch import load_file

    return load_file(f"{path}/model.safetensors")[name].flatten().numpy()


def test_norms_agree_with_float64(family: dict[str, str]):
    whole = sum_norms(list(measure_norms(aligned(family)).values()))
    base = flat(family["base"])
    vectors = [(flat(path) - base).astype(np.float64) for path in list(family.values())[1:]]
    for place, path in enumerate(list(family.values())[1:]):
        square = np.square(flat(path).astype(np.float64)).sum()
        assert whole.weights[place][place] == pytest.approx(square, rel=1e-12)
        for other, vector in enumerate(vectors):
            product = float(vectors[place] @ vector)
            assert whole.task_vectors[place][other] == pytest.approx(product, rel=1e-9, abs=1e-9)


def test_norms_do_not_depend_on_how_tensors_are_grouped(family: dict[str, str]):
    tensors = aligned(family)
    together = measure_norms(tensors)
    apart: dict[str, object] = {}
    for tensor in reversed(tensors):
        apart |= measure_norms([tensor])
    assert {name: apart[name] for name in together} == together


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_named(family: dict[str, str], write_checkpoint, bad: float):
    from safetensors.torch import load_file

    tensors = load_file(f"{family['math']}/model.safetensors")
    tensors["layers.0.bias"][3] = bad
    broken = write_checkpoint("broken", tensors)
    with pytest.raises(CheckpointError, match=r"broken.*layers\.0\.bias.*element 3 of 5"):
        measure_norms(aligned({"base": family["base"], "broken": broken}))


@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.999, 1.0])
def test_thresholds_equal_a_sort(family: dict[str, str], density: float):
    recipe = MergeRecipe.model_validate(
        {
            "base": family["base"],
            "models": [path for name, path in family.items() if name != "base"],
            "method": {"name": "ties", "density": density},
        }
    )
    (measured,) = measure([plan_merge(recipe)], run_serially)
    base = flat(family["base"])
    for place, model in enumerate(recipe.models):
        magnitudes = np.sort(np.abs(flat(model.path) - base))
        expected = (
            0.0 if density == 1 else magnitudes[kept_rank("paper", density, len(magnitudes)) - 1]
        )
        assert measured.thresholds[place] == expected


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60),
    st.data(),
)
def test_histogram_selection_equals_a_sort(values: list[float], data: st.DataObject):
    rank = data.draw(st.integers(1, len(values)))
    bits = np.abs(np.array(values, np.float32)).view(np.int32)
    coarse = np.bincount(bits >> FINE_BITS, minlength=1 << 15)
    chosen, inner_rank = find_rank(coarse, rank)
    inside = bits[bits >> FINE_BITS == chosen] & ((1 << FINE_BITS) - 1)
    fine_bin, _ = find_rank(np.bincount(inside, minlength=1 << FINE_BITS), inner_rank)
    found = bits_to_float(chosen << FINE_BITS | fine_bin)
    assert found == sorted(abs(np.float32(value)) for value in values)[rank - 1]


def test_histograms_count_every_float_once(family: dict[str, str]):
    tensors = aligned(family)
    num_floats = sum(t.reference.num_elements for t in tensors if t.is_merged)
    assert count_magnitudes(tensors).sum(axis=1).tolist() == [num_floats] * 3


@pytest.mark.parametrize("density", [0.3, 0.9])
def test_thresholds_of_a_tensor_equal_a_sort(family: dict[str, str], density: float):
    trims = [("mergekit", (density,) * 3), ("peft", (0.5,) * 3)]
    for tensor in aligned(family):
        if not tensor.is_merged:
            continue
        found = tensor_thresholds([tensor], {tensor.name: trims})[tensor.name]
        one, two = (only(path, tensor.name) for path in (family["base"], family["math"]))
        magnitudes = np.sort(np.abs(two - one))
        for (dialect, densities), row in zip(trims, found, strict=True):
            rank = kept_rank(dialect, densities[0], len(magnitudes))
            assert row[0] == [0.0, *magnitudes, math.inf][rank]


def test_only_what_was_asked_for_is_measured(family: dict[str, str]):
    tensors = aligned(family)
    everything = measure_norms(tensors)
    wanted = WantedProducts(weights=False, task_vectors=True, all_pairs=False)
    for name, norms in measure_norms(tensors, wanted).items():
        assert (norms.weights, norms.weight_sums) == ((), ())
        assert norms.task_vector_sums == everything[name].task_vector_sums
        for i, row in enumerate(norms.task_vectors):
            assert row[i] == everything[name].task_vectors[i][i]
            assert all(math.isnan(value) for j, value in enumerate(row) if j != i)


def test_sums_do_not_depend_on_the_number_of_workers(family: dict[str, str]):
    tensors = aligned(family)
    assert measure_norms(tensors, workers=5) == measure_norms(tensors, workers=1)


def test_sums_of_elements_agree_with_float64(family: dict[str, str]):
    whole = sum_norms(list(measure_norms(aligned(family)).values()))
    base = flat(family["base"])
    for place, path in enumerate(list(family.values())[1:]):
        weights = flat(path)
        assert whole.weight_sums[place] == pytest.approx(weights.astype(np.float64).sum())
        vector = (weights - base).astype(np.float64)
        assert whole.task_vector_sums[place] == pytest.approx(vector.sum())


@pytest.mark.parametrize("workers", [1, 2])
def test_histograms_of_many_tensors_are_not_kept(write_checkpoint, workers: int):
    # A large tensor first, so that one thread is long at it while the other counts the small ones.
    shapes = {"a": (1 << 22,), **{f"b{place}": (8,) for place in range(120)}}
    base = write_checkpoint("large", {name: torch.zeros(shape) for name, shape in shapes.items()})
    tuned = write_checkpoint("tuned", {name: torch.rand(shape) for name, shape in shapes.items()})
    opened = [open_checkpoint(path) for path in (base, *[tuned] * 4)]
    tensors = align(opened[0], opened[1:])
    trims = {name: [("mergekit", (0.25,) * 4)] for name in shapes}
    tensor_thresholds(tensors[:2], trims, workers)  # kernels are compiled and loaded
    for count in (
        lambda: tensor_thresholds(tensors, trims, workers),
        lambda: count_magnitudes(tensors, None, workers),
        lambda: count_magnitudes(tensors, [[0x3F00]] * 4, workers),
    ):
        tracemalloc.start()
        try:
            count()
            assert tracemalloc.get_traced_memory()[1] < 60 << 20
        finally:
            tracemalloc.stop()
