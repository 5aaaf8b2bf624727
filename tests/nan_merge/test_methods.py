from typing import get_args

import pytest
import torch
from torch import tensor

from nan_merge.methods import METHODS, MethodOptions, ModelStatistics
from nan_merge.methods.average import AverageOptions, average
from nan_merge.methods.task_arithmetic import TaskArithmeticOptions, task_arithmetic
from nan_merge.methods.ties import TiesOptions, count_elected_signs, ties

BASE = tensor([1.0, 1.0, 1.0, 1.0])
KEEP_ALL = ModelStatistics((0.0, 0.0))


def test_every_method_is_a_choice_of_the_recipe():
    union = get_args(get_args(MethodOptions)[0])
    assert {row.options for row in METHODS.values()} == set(union)
    assert {name: row.options().name for name, row in METHODS.items()} == {n: n for n in METHODS}


def test_average_of_two():
    merged = average(None, [tensor([2.0]), tensor([4.0])], [0.25, 0.75], AverageOptions(), KEEP_ALL)
    assert merged.tolist() == [3.5]


def test_task_arithmetic_adds_scaled_differences():
    tuned = [tensor([2.0, 1.0, 1.0, 1.0]), tensor([1.0, 3.0, 1.0, 1.0])]
    merged = task_arithmetic(BASE, tuned, [0.5, 0.25], TaskArithmeticOptions(), KEEP_ALL)
    assert merged.tolist() == [1.5, 1.5, 1.0, 1.0]


def test_one_model_with_coefficient_one_gives_that_model_back():
    tuned = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    base = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    options = TaskArithmeticOptions()
    merged = task_arithmetic(base, [tuned], [1.0], options, ModelStatistics())
    torch.testing.assert_close(merged, tuned, rtol=1e-6, atol=1e-6)


# Task vectors: agree, disagree (larger minus), one silent, tied.
TUNED = [BASE + tensor([1.0, 1.0, 2.0, 1.0]), BASE + tensor([3.0, -2.0, 0.0, -1.0])]


@pytest.mark.parametrize(
    ("disjoint", "expected"),
    [("sum", [4.0, -2.0, 2.0, 1.0]), ("mean", [2.0, -2.0, 2.0, 1.0])],
)
def test_ties_joins_what_agrees(disjoint: str, expected: list[float]):
    options = TiesOptions.model_validate({"disjoint": disjoint})
    merged = ties(BASE, TUNED, [1.0, 1.0], options, KEEP_ALL)
    assert (merged - BASE).tolist() == expected


def test_ties_of_the_vote_take_the_majority_sign():
    options = TiesOptions(disjoint="sum")
    merged = ties(BASE, TUNED, [1.0, 1.0], options, ModelStatistics((0.0, 0.0), -1.0))
    assert (merged - BASE).tolist()[3] == -1.0


def test_ties_drops_what_is_below_the_threshold_and_keeps_what_equals_it():
    options = TiesOptions(disjoint="sum")
    merged = ties(BASE, TUNED, [1.0, 1.0], options, ModelStatistics((2.0, 2.0)))
    assert (merged - BASE).tolist() == [3.0, -2.0, 2.0, 0.0]


def test_coefficients_weigh_the_vote_before_but_not_after():
    coefficients = [3.0, 1.0]  # +3 against -2 in the second place
    before = ties(BASE, TUNED, coefficients, TiesOptions(disjoint="sum"), KEEP_ALL)
    after_options = TiesOptions(disjoint="sum", order="after")
    after = ties(BASE, TUNED, coefficients, after_options, KEEP_ALL)
    assert (before - BASE).tolist()[1] == 3.0
    assert (after - BASE).tolist()[1] == -2.0


def test_density_one_without_conflict_is_task_arithmetic():
    generator = torch.Generator().manual_seed(3)
    vectors = [torch.rand(50, generator=generator) for _ in range(3)]
    base = torch.zeros(50)
    coefficients = [0.2, 0.3, 0.5]
    statistics = ModelStatistics((0.0,) * 3)
    options = TiesOptions(density=1.0, disjoint="sum")
    expected = task_arithmetic(base, vectors, coefficients, TaskArithmeticOptions(), statistics)
    merged = ties(base, vectors, coefficients, options, statistics)
    torch.testing.assert_close(merged, expected, rtol=1e-6, atol=0)


def test_elected_signs_are_counted():
    # elected: +, -, +, and a tie that counts for neither
    assert count_elected_signs(BASE, TUNED, [1.0, 1.0], TiesOptions(), KEEP_ALL) == 1
