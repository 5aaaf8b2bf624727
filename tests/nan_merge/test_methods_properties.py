"""What holds for every method, dialect and shape."""

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from nan_merge.methods import METHODS
from nan_merge.methods.method import Dialect
from tests.method_reference import SHAPES, draw, merge_whole, options_of

Case = tuple[str, dict[str, Any]]


def _dialects(name: str) -> list[str]:
    field = METHODS[name].options.model_fields.get("dialect")
    return list(get_args(field.annotation)) if field else []


CASES: list[Case] = [
    (name, options)
    for name in METHODS
    for options in [{"dialect": dialect} for dialect in _dialects(name)] or [{}]
]
CASES += [
    ("ties", {"density": 0.5, "elect": "frequency", "dialect": "peft"}),
    ("ties", {"density": 0.5, "disjoint": "sum", "order": "after", "lambda": 0.3}),
    ("dare_linear", {"dialect": "mergekit", "rescale": False}),
    ("breadcrumbs", {"density": 0.6, "gamma": 0.2, "rows": True}),
    ("breadcrumbs", {"density": 0.6, "gamma": 0.2}),
    ("nuslerp", {"vectors": "row"}),
    ("nuslerp", {"vectors": "column"}),
    ("model_stock", {"vectors": "row"}),
    ("sce", {"density": 0.4}),
]
IDS = [f"{name}-{'-'.join(str(v) for v in options.values())}" for name, options in CASES]
cases = pytest.mark.parametrize("case", CASES, ids=IDS)


def num_models(name: str, wanted: int) -> int:
    row = METHODS[name]
    return max(row.fewest_models, min(wanted, row.most_models or wanted))


def coefficients_of(name: str, count: int) -> list[float]:
    if name == "model_stock":
        return [1 / count] * count
    if METHODS[name].weights_sum_to_one:
        return [(place + 1) / (count * (count + 1) / 2) for place in range(count)]
    return [0.5 + 0.25 * place for place in range(count)]


def all_kept(case: Case) -> dict[str, Any]:
    name, options = case
    return options | ({"density": 1.0} if "density" in METHODS[name].options.model_fields else {})


@cases
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_odd_shapes_give_finite_results_of_that_shape(case: Case, shape: tuple[int, ...]):
    name, options = case
    base, tuned = draw(shape, num_models(name, 3))
    merged = merge_whole(
        options_of(name, **options), base, tuned, coefficients_of(name, len(tuned))
    )
    assert merged.shape == shape and merged.dtype == torch.float32
    assert bool(merged.isfinite().all())


@cases
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_split_gives_the_same_bytes(case: Case, data: st.DataObject):
    name, options = case
    rows, columns = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 40))
    unit = METHODS[name].for_options(options_of(name, **options)).unit
    limit = {"element": rows * columns, "row": rows, "matrix": 1}[unit]
    cuts = data.draw(st.sets(st.integers(1, max(1, limit - 1)), max_size=4)) if limit > 1 else []
    base, tuned = draw((rows, columns), num_models(name, 3), data.draw(st.integers(0, 9)))
    weights = coefficients_of(name, len(tuned))
    whole = merge_whole(options_of(name, **options), base, tuned, weights)
    pieces = merge_whole(options_of(name, **options), base, tuned, weights, cuts=list(cuts))
    assert whole.numpy().tobytes() == pieces.numpy().tobytes()


@cases
def test_blocks_of_any_size_give_the_same_bytes(case: Case):
    name, options = case
    unit = METHODS[name].for_options(options_of(name, **options)).unit
    base, tuned = draw((300, 701), num_models(name, 3))
    weights = coefficients_of(name, len(tuned))
    whole = merge_whole(options_of(name, **options), base, tuned, weights)
    sizes = (1 << 16, 99_991) if unit == "element" else (64, 7)
    total = base.numel() if unit == "element" else len(base)
    for size in sizes:
        cuts = range(size, total, size)
        pieces = merge_whole(options_of(name, **options), base, tuned, weights, cuts=cuts)
        assert whole.numpy().tobytes() == pieces.numpy().tobytes()


@cases
def test_one_model_with_coefficient_one_gives_that_model_back(case: Case):
    name, options = case[0], all_kept(case)
    if name.startswith("iso_"):
        pytest.skip("makes singular values equal, also those of one model")
    base, (tuned,) = draw((6, 20), 1)
    count = METHODS[name].fewest_models  # where two are needed, the same one twice
    weights = [1.0 / count] * count if METHODS[name].weights_sum_to_one else [1.0]
    options.pop("lambda", None)
    merged = merge_whole(options_of(name, **options), base, [tuned] * count, weights)
    torch.testing.assert_close(merged, tuned, rtol=3e-7, atol=3e-7)


@cases
def test_the_order_of_models_does_not_matter(case: Case):
    name, options = case
    count = num_models(name, 3)
    base, tuned = draw((6, 20), count)
    weights = coefficients_of(name, count)
    models = tuple(f"model{place}" for place in range(count))
    order = list(reversed(range(count)))
    one = merge_whole(options_of(name, **options), base, tuned, weights, models=models)
    other = merge_whole(
        options_of(name, **options),
        base,
        [tuned[place] for place in order],
        [weights[place] for place in order],
        models=tuple(models[place] for place in order),
    )
    torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-6)


@cases
@pytest.mark.parametrize("factor", [0.25, 8.0])
def test_scaling_everything_scales_the_result(case: Case, factor: float):
    name, options = case
    if name == "wudi":
        pytest.skip("its steps have a length of their own")
    base, tuned = draw((6, 20), num_models(name, 3))
    weights = coefficients_of(name, len(tuned))
    merged = merge_whole(options_of(name, **options), base, tuned, weights)
    scaled = [tensor * factor for tensor in tuned]  # a power of two changes no rounding
    other = merge_whole(options_of(name, **options), base * factor, scaled, weights)
    torch.testing.assert_close(other, merged * factor, rtol=1e-6, atol=1e-6)


LINEAR = ["dare_linear", "della_linear", "breadcrumbs"]


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("dialect", ["paper", "mergekit"])
def test_density_one_is_task_arithmetic(name: str, dialect: str):
    base, tuned = draw((6, 20), 3)
    options = options_of(name, density=1.0, dialect=dialect)
    merged = merge_whole(options, base, tuned, [0.3, 0.5, 0.2])
    expected = merge_whole(options_of("task_arithmetic"), base, tuned, [0.3, 0.5, 0.2])
    assert torch.equal(merged, expected)


@pytest.mark.parametrize("dialect", get_args(Dialect))
def test_density_one_without_conflict_is_task_arithmetic(dialect: str):
    base, tuned = draw((6, 20), 3)
    tuned = [base + (tensor - base).abs() for tensor in tuned]
    options = options_of("ties", density=1.0, dialect=dialect, disjoint="sum")
    merged = merge_whole(options, base, tuned, [0.3, 0.5, 0.2])
    expected = merge_whole(options_of("task_arithmetic"), base, tuned, [0.3, 0.5, 0.2])
    torch.testing.assert_close(merged, expected, rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della_linear", "della_ties"])
def test_another_seed_drops_other_elements_and_the_same_seed_the_same(name: str):
    base, tuned = draw((6, 20), 2)
    runs = [merge_whole(options_of(name), base, tuned, [1.0, 1.0], seed=seed) for seed in (0, 1, 0)]
    assert torch.equal(runs[0], runs[2]) and not torch.equal(runs[0], runs[1])


@pytest.mark.parametrize(
    "name", [n for n in METHODS if "density" in METHODS[n].options.model_fields]
)
def test_zero_task_vectors_give_the_base(name: str):
    base = tensor([[1.0, -2.0, 3.0]])
    for dialect in _dialects(name):
        merged = merge_whole(
            options_of(name, dialect=dialect), base, [base.clone(), base.clone()], [0.5, 0.5]
        )
        assert torch.equal(merged, base)
