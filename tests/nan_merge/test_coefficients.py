import math

import pytest

from nan_merge.coefficients import WHOLE_MODEL, compute_coefficients
from nan_merge.errors import CoefficientError, IncompatibleError
from nan_merge.methods.method import TensorNorms
from nan_merge.recipe import MergeRecipe
from nan_merge.shares import SHARES, metagpt_alpha, nan_alpha, root_mean_squares


def recipe(method: str = "task_arithmetic", num_models: int = 2, **coefficients: object):
    models = [{"path": f"m{i}", "name": f"m{i}"} for i in range(num_models)]
    return MergeRecipe.model_validate(
        {"base": "b", "models": models, "method": method, "coefficients": coefficients}
    )


def norms(*pairs: tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]):
    def diagonal(squares: tuple[float, ...]):
        places = range(len(squares))
        return tuple(tuple(squares[i] if i == j else 0.0 for j in places) for i in places)

    return {
        f"layers.{i}.w": TensorNorms(diagonal(squares), products)
        for i, (squares, products) in enumerate(pairs)
    }


# Weights of norm 3 and 4 in one tensor, 4 and 3 in the other: 5 and 5 in all. Task vectors of
# norm 1 and 3, at right angles, in the first tensor alone.
NORMS = norms(((9.0, 16.0), ((1.0, 0.0), (0.0, 9.0))), ((16.0, 9.0), ((0.0, 0.0), (0.0, 0.0))))
NAMES = list(NORMS)


def test_equation_10_on_numbers_worked_by_hand():
    # 1/2, 1/4 and 1/4 over their sum 1
    assert nan_alpha([2.0, 4.0, 4.0]) == (0.5, 0.25, 0.25)


def test_power_two_is_the_squared_norm():
    assert nan_alpha([1.0, 3.0], power=2.0) == pytest.approx((0.9, 0.1), abs=1e-15)


def test_alpha_survives_norms_whose_inverse_overflows():
    assert nan_alpha([1e-310, 1e-310]) == (0.5, 0.5)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_alpha_refuses_norms_without_an_inverse(bad: float):
    with pytest.raises(ValueError, match="positive and finite"):
        nan_alpha([1.0, bad])


def test_paper_scale_is_half_the_number_of_models():
    table = compute_coefficients(recipe(source="nan", target="task_vector"), NAMES, NORMS)
    assert table.alpha[WHOLE_MODEL] == (0.75, 0.25)
    assert table.scale == 1.0  # m/2 with m = 2
    assert table.coefficients[WHOLE_MODEL] == (0.75, 0.25)


def test_weight_norms_are_taken_over_all_tensors():
    table = compute_coefficients(recipe(source="nan"), NAMES, NORMS)
    assert table.norms[WHOLE_MODEL] == (5.0, 5.0)
    assert table.alpha[WHOLE_MODEL] == (0.5, 0.5)
    assert table.is_nearly_uniform()


def test_layer_scope_has_its_own_shares():
    table = compute_coefficients(recipe(source="nan", scope="layer"), NAMES, NORMS)
    assert table.alpha["layers.0"] == pytest.approx((4 / 7, 3 / 7))
    assert table.alpha["layers.1"] == pytest.approx((3 / 7, 4 / 7))
    assert table.for_tensor("layers.1.w") == table.coefficients["layers.1"]


def test_a_layer_that_no_model_changed_gets_equal_shares():
    spec = recipe(source="nan", target="task_vector", scope="layer")
    assert compute_coefficients(spec, NAMES, NORMS).alpha["layers.1"] == (0.5, 0.5)


def test_include_and_exclude_choose_whose_norms_count():
    only_first = recipe(source="nan", include=["layers.0.*"])
    assert compute_coefficients(only_first, NAMES, NORMS).norms[WHOLE_MODEL] == (3.0, 4.0)
    without_first = recipe(source="nan", exclude=["layers.0.*"])
    assert compute_coefficients(without_first, NAMES, NORMS).norms[WHOLE_MODEL] == (4.0, 3.0)


def test_patterns_that_leave_nothing_are_an_error():
    with pytest.raises(CoefficientError, match="leave no tensor"):
        compute_coefficients(recipe(source="nan", include=["head.*"]), NAMES, NORMS)


def test_norm_scale_makes_the_update_as_long_as_the_mean_task_vector():
    spec = recipe(source="uniform", scale="norm")
    table = compute_coefficients(spec, NAMES, NORMS)
    first, second = table.coefficients[WHOLE_MODEL]
    # task vectors (1, 0) and (0, 3): mean length 2
    assert math.hypot(first * 1.0, second * 3.0) == pytest.approx(2.0, rel=1e-6)
    assert first == second


def test_norm_scale_refuses_task_vectors_that_cancel():
    opposite = norms(((1.0, 1.0), ((1.0, -1.0), (-1.0, 1.0))))
    with pytest.raises(CoefficientError, match="cancel"):
        compute_coefficients(recipe(source="uniform", scale="norm"), list(opposite), opposite)


def test_matched_has_the_sum_of_nan_in_equal_parts():
    spec = {"target": "task_vector", "scale": "norm"}
    learned = compute_coefficients(recipe(source="nan", **spec), NAMES, NORMS)
    matched = compute_coefficients(recipe(source="matched", **spec), NAMES, NORMS)
    assert len(set(matched.coefficients[WHOLE_MODEL])) == 1
    assert sum(matched.coefficients[WHOLE_MODEL]) == pytest.approx(
        sum(learned.coefficients[WHOLE_MODEL]), rel=1e-6
    )


def test_uniform_lambda_is_every_coefficient():
    spec = recipe(num_models=3, source="uniform", **{"lambda": 0.3})
    table = compute_coefficients(spec, ["w"], {})
    assert table.coefficients[WHOLE_MODEL] == pytest.approx((0.3,) * 3, rel=1e-7)


def test_coefficients_are_float32_numbers():
    import numpy as np

    table = compute_coefficients(recipe(source="uniform", **{"lambda": 0.1}), ["w"], {})
    (first, _) = table.coefficients[WHOLE_MODEL]
    assert first == float(np.float32(0.1)) != 0.1


def test_fixed_values_are_taken_as_they_are():
    table = compute_coefficients(recipe(source="fixed", values=[0.25, -1.0]), ["w"], {})
    assert table.coefficients[WHOLE_MODEL] == (0.25, -1.0)


def test_an_average_divides_by_the_sum_of_weights():
    models = [{"path": "a", "weight": 1.0}, {"path": "b", "weight": 3.0}]
    spec = MergeRecipe.model_validate({"models": models, "method": "average"})
    assert compute_coefficients(spec, ["w"], {}).coefficients[WHOLE_MODEL] == (0.25, 0.75)


def test_a_zero_norm_is_refused_with_the_models_name():
    zero = norms(((1.0, 1.0), ((0.0, 0.0), (0.0, 4.0))))
    with pytest.raises(CoefficientError, match=r"Model m0 has a .* 0: .*zero_norm: exclude"):
        compute_coefficients(recipe(source="nan", target="task_vector"), list(zero), zero)


def test_an_excluded_zero_norm_gets_nothing_and_does_not_count():
    zero = norms(((1.0, 1.0), ((0.0, 0.0), (0.0, 4.0))))
    spec = recipe(source="nan", target="task_vector", zero_norm="exclude")
    table = compute_coefficients(spec, list(zero), zero)
    assert table.alpha[WHOLE_MODEL] == (0.0, 1.0)
    assert table.scale == 0.5  # m/2 with one model left


@pytest.mark.parametrize("scope", ["layer", "tensor"])
def test_a_model_without_any_norm_does_not_count_where_no_model_changed_anything_either(scope):
    # Nobody changed the second tensor: what is shared out there is shared by those who learned.
    squares = ((0.0, 0.0), (0.0, 4.0)), ((0.0, 0.0), (0.0, 0.0))
    zero = norms(((1.0, 1.0), squares[0]), ((1.0, 1.0), squares[1]))
    spec = {"source": "nan", "target": "task_vector", "scope": scope, "zero_norm": "exclude"}
    table = compute_coefficients(recipe(**spec), list(zero), zero)
    assert set(table.alpha.values()) == {(0.0, 1.0)}
    assert table.scale == 0.5  # m/2 with one model left


@pytest.mark.parametrize("scope", ["model", "layer", "tensor"])
@pytest.mark.parametrize("source", ["nan", "rms", "metagpt"])
def test_models_that_all_learned_nothing_are_refused_in_every_scope(source, scope):
    nothing = norms(((1.0, 1.0), ((0.0, 0.0), (0.0, 0.0))))
    for zero_norm in ("error", "exclude"):
        spec = {"source": source, "target": "task_vector", "scope": scope, "zero_norm": zero_norm}
        with pytest.raises(CoefficientError, match=r"Every model has a task-vector norm of 0"):
            compute_coefficients(recipe(**spec), list(nothing), nothing, {"layers.0.w": 6})


def test_coefficients_that_float32_cannot_hold_are_refused():
    with pytest.raises(CoefficientError, match="too large for float32"):
        compute_coefficients(recipe(**{"source": "uniform", "lambda": 1e39}), ["w"], {})


def test_metagpt_says_whose_norms_it_takes():
    spec = recipe(source="metagpt").coefficients
    assert spec.target == "task_vector"
    assert MergeRecipe.model_validate(recipe(source="metagpt").model_dump(by_alias=True))
    with pytest.raises(ValueError, match="target: task_vector"):
        recipe(source="metagpt", target="weights")


def test_weights_multiply_nan_shares():
    models = [{"path": "a", "weight": 2.0}, {"path": "b"}]
    spec = MergeRecipe.model_validate(
        {"base": "b0", "models": models, "method": "task_arithmetic", "coefficients": "nan"}
    )
    assert compute_coefficients(spec, NAMES, NORMS).coefficients[WHOLE_MODEL] == (1.0, 0.5)


def weighted(*weights: object, method: str = "task_arithmetic", **coefficients: object):
    models = [{"path": f"m{i}", "weight": weight} for i, weight in enumerate(weights)]
    return MergeRecipe.model_validate(
        {"base": "b", "models": models, "method": method, "coefficients": coefficients}
    )


def test_a_gradient_makes_a_coefficient_for_every_tensor():
    names = ["embed.weight", "layers.0.w", "layers.1.w", "layers.2.w"]
    table = compute_coefficients(weighted([0.0, 1.0], 0.5), names, {})
    assert table.scope == "tensor"
    assert [table.for_tensor(name) for name in names] == [
        (0.0, 0.5),
        (0.0, 0.5),
        (0.5, 0.5),
        (1.0, 0.5),
    ]


def test_shares_of_the_model_are_weighed_tensor_by_tensor():
    rules = [{"filter": "layers.0.*", "value": 2.0}]
    spec = weighted(rules, 1.0, source="nan", target="task_vector")
    table = compute_coefficients(spec, NAMES, NORMS)
    assert table.alpha["layers.1.w"] == table.alpha["layers.0.w"] == (0.75, 0.25)
    assert table.norms["layers.0.w"] == (1.0, 3.0)
    assert table.for_tensor("layers.0.w") == (1.5, 0.25)
    assert table.for_tensor("layers.1.w") == (0.0, 0.25)


def test_norm_scale_measures_the_update_that_the_weights_make():
    spec = weighted([{"filter": "layers.0.*", "value": 4.0}], 0.0, source="uniform", scale="norm")
    table = compute_coefficients(spec, NAMES, NORMS)
    # Only 4 tau_0 is left; it must become as long as the mean of what takes part, tau_0 itself.
    assert table.for_tensor("layers.0.w") == pytest.approx((1.0, 0.0), rel=1e-6)


def test_an_average_divides_by_the_weights_of_each_tensor():
    rules = [{"filter": "*mlp*", "value": 3.0}, {"value": 0.0}]
    table = compute_coefficients(weighted(rules, 1.0, method="average"), ["a.mlp", "a.attn"], {})
    assert table.for_tensor("a.mlp") == (0.75, 0.25)
    assert table.for_tensor("a.attn") == (0.0, 1.0)


def test_an_average_of_nothing_is_refused_with_the_tensors_name():
    rules = [{"filter": "*mlp*", "value": 1.0}]
    with pytest.raises(CoefficientError, match=r"sum to 0 in a\.attn"):
        compute_coefficients(weighted(rules, rules, method="average"), ["a.mlp", "a.attn"], {})


def test_matched_goes_by_weight_alone():
    spec = {"target": "task_vector"}
    learned = compute_coefficients(weighted(1.0, 3.0, source="nan", **spec), NAMES, NORMS)
    matched = compute_coefficients(weighted(1.0, 3.0, source="matched", **spec), NAMES, NORMS)
    first, second = matched.coefficients[WHOLE_MODEL]
    assert second == pytest.approx(3 * first, rel=1e-6)
    assert first + second == pytest.approx(sum(learned.coefficients[WHOLE_MODEL]), rel=1e-6)


def test_metagpt_grows_with_the_squared_norm():
    assert metagpt_alpha([1.0, 3.0]) == pytest.approx((0.1, 0.9), abs=1e-15)
    table = compute_coefficients(recipe(source="metagpt"), NAMES, NORMS)
    assert table.norms[WHOLE_MODEL] == (1.0, 3.0)  # of task vectors, whatever `target` defaults to
    assert table.coefficients[WHOLE_MODEL] == pytest.approx((0.1, 0.9), rel=1e-6)


def test_metagpt_gives_a_model_that_learned_nothing_nothing():
    zero = norms(((1.0, 1.0), ((0.0, 0.0), (0.0, 4.0))))
    table = compute_coefficients(recipe(source="metagpt"), list(zero), zero)
    assert table.coefficients[WHOLE_MODEL] == (0.0, 1.0)


def test_metagpt_survives_norms_whose_squares_underflow():
    assert metagpt_alpha([1e-200, 1e-200]) == (0.5, 0.5)


def test_root_mean_squares_do_not_depend_on_the_size_of_tensors():
    # norm / sqrt(n): 3 / 3 and 4 / 3 in the first tensor, 4 / 1 and 3 / 1 in the second
    table = compute_coefficients(
        recipe(source="rms"), NAMES, NORMS, {"layers.0.w": 9, "layers.1.w": 1}
    )
    assert table.norms[WHOLE_MODEL] == pytest.approx(((3 / 3 + 4 / 1) / 2, (4 / 3 + 3 / 1) / 2))
    assert table.scale == 1.0  # m/2, as NAN's
    assert root_mean_squares([NORMS["layers.0.w"]], [0], "weights") == ()


@pytest.mark.parametrize("source", sorted(SHARES))
def test_shares_sum_to_one_and_follow_their_models(source):
    share = SHARES[source].share
    forward, backward = share([1.0, 2.0, 7.0], 1.0), share([7.0, 2.0, 1.0], 1.0)
    assert math.fsum(forward) == pytest.approx(1.0, abs=1e-15)
    assert forward == pytest.approx(backward[::-1], abs=1e-15)


def test_models_of_another_depth_are_refused():
    spec = recipe().model_copy(update={"num_layers": 4})
    with pytest.raises(IncompatibleError, match=r"4 layers .* these have 2"):
        compute_coefficients(spec, NAMES, {})


@pytest.mark.parametrize("source", ["uniform", "fixed"])
@pytest.mark.parametrize("knob", [{"target": "task_vector"}, {"power": 2.0}, {"scope": "layer"}])
def test_a_knob_that_would_do_nothing_is_refused(source: str, knob: dict[str, object]):
    values = {"values": [0.5, 0.5]} if source == "fixed" else {}
    with pytest.raises(ValueError, match="would do nothing"):
        recipe(source=source, **values, **knob)


def test_an_excluded_model_does_not_lower_the_norm_scale():
    alone = norms(((1.0, 1.0), ((4.0, 0.0), (0.0, 4.0))))
    joined = norms(((1.0, 1.0, 1.0), ((4.0, 0.0, 0.0), (0.0, 4.0, 0.0), (0.0, 0.0, 0.0))))
    spec = {"source": "nan", "target": "task_vector", "scale": "norm", "zero_norm": "exclude"}
    two = compute_coefficients(recipe(**spec), list(alone), alone)
    three = compute_coefficients(recipe(num_models=3, **spec), list(joined), joined)
    assert three.coefficients[WHOLE_MODEL] == (*two.coefficients[WHOLE_MODEL], 0.0)
    spec["source"] = "matched"
    matched = compute_coefficients(recipe(num_models=3, **spec), list(joined), joined)
    assert matched.coefficients[WHOLE_MODEL] == three.coefficients[WHOLE_MODEL]


def test_variance_is_about_the_mean_over_all_elements():
    # Model 0: elements 1, 3 and 2, 2: mean 2, variance 1/2. Model 1: -2, 2 and 2, -2: mean 0,
    # variance 4. Inverses 2 and 1/4 over their sum 9/4.
    first = TensorNorms(((10.0, 4.0), (4.0, 8.0)), (), (4.0, 0.0))
    second = TensorNorms(((8.0, 0.0), (0.0, 8.0)), (), (4.0, 0.0))
    measured, counts = {"a": first, "b": second}, {"a": 2, "b": 2}
    table = compute_coefficients(recipe(source="variance"), ["a", "b"], measured, counts)
    assert table.norms[WHOLE_MODEL] == (0.5, 4.0)
    assert table.alpha[WHOLE_MODEL] == pytest.approx((8 / 9, 1 / 9))
    assert table.scale == 1.0  # m/2
