"""Every method on numbers worked by hand."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, tensor

from nan_merge.errors import CoefficientError
from nan_merge.methods.ties import kept_rank
from tests.method_reference import draw, merge_whole, options_of

ZERO = torch.zeros(4)
# Agree, disagree (minus is larger), one silent, tied.
TWO = [tensor([1.0, 1.0, 2.0, 1.0]), tensor([3.0, -2.0, 0.0, -1.0])]


def merge(name: str, tuned: list[Tensor], weights: list[float], **options: Any) -> list[float]:
    base = torch.zeros_like(tuned[0])
    return merge_whole(options_of(name, **options), base, tuned, weights).flatten().tolist()


@pytest.mark.parametrize(
    ("options", "weights", "expected"),
    [
        # votes 4, -1, 2, 0; elected +, -, + and, by majority, +
        ({}, [1.0, 1.0], [2.0, -2.0, 2.0, 1.0]),
        ({"disjoint": "sum"}, [1.0, 1.0], [4.0, -2.0, 2.0, 1.0]),
        ({"dialect": "fusionbench"}, [1.0, 1.0], [4.0, -2.0, 2.0, 1.0]),
        # before: weighted votes 6, 1, 6, 2 elect plus everywhere
        ({}, [3.0, 1.0], [3.0, 3.0, 6.0, 3.0]),
        ({"dialect": "mergekit"}, [3.0, 1.0], [6 / 4, 1.0, 2.0, 1.0]),
        ({"dialect": "mergekit", "disjoint": "sum"}, [3.0, 1.0], [6.0, 3.0, 6.0, 3.0]),
        ({"dialect": "mergekit", "lambda": 0.5}, [3.0, 1.0], [0.75, 0.5, 1.0, 0.5]),
        # after: votes as if unweighted; then the weighted mean by number
        ({"order": "after"}, [3.0, 1.0], [3.0, -2.0, 6.0, 3.0]),
        ({"dialect": "peft"}, [3.0, 1.0], [3.0, -2.0, 6.0, 3.0]),
        ({"dialect": "peft", "elect": "frequency"}, [1.0, 1.0], [2.0, 1.0, 2.0, 1.0]),
    ],
)
def test_ties(options: dict[str, Any], weights: list[float], expected: list[float]):
    assert merge("ties", TWO, weights, density=1.0, **options) == expected


@pytest.mark.parametrize(
    ("dialect", "kept"),
    [("paper", 3), ("fusionbench", 3), ("mergekit", 2), ("peft", 2)],
)
def test_ties_trims_by_the_dialects_rank(dialect: str, kept: int):
    vector = [0.1, -0.5, 0.3, 0.4, -0.2]  # floor(5 * 0.4) = 2
    merged = merge("ties", [tensor(vector)], [1.0], density=0.4, dialect=dialect)
    largest = sorted(vector, key=abs)[-kept:]
    assert merged == pytest.approx([v if v in largest else 0.0 for v in vector])


def test_ranks_at_the_ends():
    assert kept_rank("paper", 0.2, 1_000_000) == 800_000
    assert [kept_rank("paper", 0.2, 3), kept_rank("paper", 1.0, 3)] == [3, 0]
    assert [kept_rank("mergekit", 0.2, 3), kept_rank("mergekit", 1.0, 3)] == [3, 0]
    assert [kept_rank("peft", 0.2, 3), kept_rank("peft", 1.0, 3)] == [4, 0]  # keeps none, all


def test_ties_takes_a_density_for_each_model():
    merged = merge("ties", [tensor([1.0, 2, 3]), tensor([1.0, 2, 3])], [1, 1], density=(1.0, 0.1))
    assert merged == [1.0, 2.0, 3.0]  # the second model keeps its 3 alone; means by number


def test_dare_rescales_by_the_density():
    vector = torch.full((1000,), 3.0)
    merged = merge_whole(
        options_of("dare_linear", density=0.25), torch.zeros(1000), [vector], [0.5]
    )
    assert set(merged.tolist()) == {0.0, 6.0}  # 0.5 * 3 / 0.25


@pytest.mark.parametrize("density", [0.05, 0.3, 0.9])
def test_the_mean_of_dare_is_the_task_vector(density: float):
    count = 1_000_000
    options = options_of("dare_linear", density=density)
    merged = merge_whole(options, torch.zeros(count), [torch.ones(count)], [1.0]).double()
    error = math.sqrt((1 - density) / density / count)  # of the mean of count draws
    assert abs(float(merged.mean()) - 1) < 4 * error
    assert abs(float((merged != 0).double().mean()) - density) < 4 * density * error


def test_dare_in_mergekits_dialect_keeps_the_sum_of_magnitudes():
    base, (tuned,) = draw((40, 30), 1)
    options = options_of("dare_linear", density=0.3, dialect="mergekit")
    merged = merge_whole(options, base, [tuned], [1.0])
    wanted = float((tuned - base).abs().sum())
    assert float((merged - base).abs().sum()) == pytest.approx(wanted, rel=1e-5)


def test_della_keeps_larger_elements_more_often_and_divides_by_their_chance():
    rows, columns = 20_000, 5
    vector = tensor([5.0, -1.0, 3.0, 2.0, -4.0]).repeat(rows, 1)
    chances = tensor([0.7, 0.3, 0.5, 0.4, 0.6])  # ranks 5, 1, 3, 2, 4 in steps of 0.1
    options = options_of("della_linear", density=0.5, epsilon=0.2)
    merged = merge_whole(options, torch.zeros(rows, columns), [vector], [1.0])
    kept = merged != 0
    torch.testing.assert_close(merged[kept], (vector / chances)[kept])
    assert float((kept.float().mean(dim=0) - chances).abs().max()) < 4 * 0.5 / math.sqrt(rows)


@pytest.mark.parametrize("name", ["della_linear", "della_ties"])
def test_della_refuses_chances_outside_zero_and_one(name: str):
    with pytest.raises(ValidationError, match=r"density 0\.1 plus and minus epsilon 0\.15"):
        options_of(name, density=(0.5, 0.1))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 10 elements: int(0.2 * 10) = 2 largest go, then 3 stay
        ({"density": 0.3, "gamma": 0.2}, [0, 0, 0, 0, 0, 6.0, -7.0, 8.0, 0, 0]),
        # both shares together exceed 1: one outlier goes, and nothing at the other end
        ({"density": 0.9, "gamma": 0.2}, [1.0, -2.0, 3.0, 4.0, 5.0, 6.0, -7.0, 8.0, 9.0, 0]),
        ({"density": 0.05, "gamma": 0.2}, [0, 0, 0, 0, 0, 0, 0, 8.0, 0, 0]),
        ({"density": 0.05, "gamma": 0.2, "dialect": "mergekit"}, [0.0] * 10),
    ],
)
def test_breadcrumbs(options: dict[str, Any], expected: list[float]):
    vector = tensor([1.0, -2, 3, 4, 5, 6, -7, 8, 9, 10])
    assert merge("breadcrumbs", [vector], [1.0], **options) == expected


def test_breadcrumbs_by_rows():
    vector = tensor([[1.0, 2.0, 3.0, 4.0], [40.0, 30.0, 20.0, 10.0]])
    merged = merge("breadcrumbs", [vector], [1.0], density=0.5, gamma=0.25, rows=True)
    assert merged == [0, 2.0, 3.0, 0, 0, 30.0, 20.0, 0]


def test_breadcrumbs_ties_sums_what_agrees_or_averages_it():
    tuned = [tensor([1.0, 9.0, 2.0]), tensor([-3.0, 4.0, 8.0])]
    kept = {"density": 0.67, "gamma": 0.34}  # the largest goes, two stay
    assert merge("breadcrumbs_ties", tuned, [1, 1], **kept) == [-3.0, 4.0, 2.0]
    dialect = kept | {"dialect": "mergekit"}
    assert merge("breadcrumbs_ties", tuned, [1, 1], **dialect) == [-3.0, 4.0, 2.0]
    both = [tensor([1.0, 2.0]), tensor([3.0, 2.0])]
    assert merge("breadcrumbs_ties", both, [1, 1], density=1.0) == [2.0, 2.0]
    assert merge("breadcrumbs_ties", both, [1, 1], density=1.0, dialect="mergekit") == [4.0, 4.0]


def test_slerp_halfway_between_right_angles_keeps_the_length():
    merged = merge("slerp", [tensor([1.0, 0.0]), tensor([0.0, 1.0])], [0.5, 0.5])
    assert merged == pytest.approx([math.sqrt(0.5)] * 2)


def test_slerp_of_parallel_tensors_is_a_straight_line():
    assert merge("slerp", [tensor([2.0]), tensor([4.0])], [0.25, 0.75]) == [3.5]


def test_nuslerp_goes_along_task_vectors_or_along_weights():
    base, tuned = tensor([1.0, 1.0]), [tensor([2.0, 1.0]), tensor([1.0, 2.0])]
    with_base = merge_whole(options_of("nuslerp"), base, tuned, [0.5, 0.5])
    assert with_base.tolist() == pytest.approx([1 + math.sqrt(0.5)] * 2)
    without = merge_whole(options_of("nuslerp"), None, tuned, [0.5, 0.5])
    factor = math.sin(math.acos(0.8) / 2) / math.sin(math.acos(0.8))  # cosine (2 + 2) / 5
    assert without.tolist() == pytest.approx([3 * factor] * 2)


@pytest.mark.parametrize("vectors", ["row", "column"])
def test_nuslerp_turns_each_row_or_column_by_its_own_angle(vectors: str):
    first, second = tensor([[1.0, 0.0], [1.0, 0.0]]), tensor([[0.0, 1.0], [3.0, 0.0]])
    if vectors == "column":
        first, second = first.T, second.T
    merged = merge_whole(options_of("nuslerp", vectors=vectors), None, [first, second], [0.5, 0.5])
    merged = merged.T if vectors == "column" else merged
    half = math.sqrt(0.5)
    assert merged.flatten().tolist() == pytest.approx([half, half, 2.0, 0.0])


def test_model_stock_moves_as_far_as_the_angle_says():
    tuned = [tensor([1.0, 0.0]), tensor([0.6, 0.8])]  # cosine 0.6: t = 1.2 / 1.6
    assert merge("model_stock", tuned, [0.5, 0.5]) == pytest.approx([0.6, 0.3])
    right_angles = [tensor([1.0, 0.0]), tensor([0.0, 1.0])]
    assert merge("model_stock", right_angles, [0.5, 0.5]) == [0.0, 0.0]


def test_model_stock_stays_at_the_base_where_no_point_exists():
    assert merge("model_stock", [tensor([1.0]), tensor([-2.0])], [0.5, 0.5]) == [0.0]


def test_model_stock_refuses_unequal_coefficients():
    with pytest.raises(CoefficientError, match="plain mean of the models"):
        merge("model_stock", [tensor([1.0]), tensor([2.0])], [0.4, 0.6])


def test_sce_selects_weighs_and_erases():
    # squares 1 + 1 and 9 + 4: weights 2/15 and 13/15; the second element's minority is erased
    tuned = [tensor([1.0, 1.0]), tensor([3.0, -2.0])]
    merged = merge("sce", tuned, [0.5, 0.5])
    assert merged == pytest.approx([(2 * 1 + 13 * 3) / 15, -2.0])
    # variances 1 and 2.25: only the second element is selected, and weights are of it alone
    assert merge("sce", tuned, [0.5, 0.5], density=0.5) == pytest.approx([0.0, -2.0])


def test_sce_coefficients_are_factors_on_its_weights():
    tuned = [tensor([1.0]), tensor([2.0])]  # weights 1/5 and 4/5, times 4 : 1
    assert merge("sce", tuned, [0.8, 0.2]) == pytest.approx([1.5])


def test_passthrough_copies_or_scales():
    tuned = tensor([1.0, -0.0, 3.0])
    same = merge_whole(options_of("passthrough"), None, [tuned], [1.0])
    assert same.numpy().tobytes() == tuned.numpy().tobytes()
    assert merge("passthrough", [tuned], [0.5]) == [0.5, 0.0, 1.5]
