"""From a section `sweep:` to merges: what is expanded, and what is refused before anything runs."""

import time

import pytest
from pydantic import ValidationError

from nan_merge.errors import ConfigError, MissingExtraError
from pipelines.config import RunConfig
from pipelines.sweep_points import PointMaker, grid_points
from pipelines.sweep_search import listed, open_search, random_points

TA = {"name": "TA", "method": "task_arithmetic"}


def config_of(*merges: dict, **sweep: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "x",
            "experts": {"tasks": ["digits", "texture"]},
            "evaluate": {"benchmarks": ["digits"]},
            "sweep": {"merges": merges, **sweep},
        }
    )


def maker_of(*merges: dict, **sweep: object) -> PointMaker:
    config = config_of(*merges, **sweep)
    assert config.sweep is not None
    return PointMaker(config, config.sweep)


def names_of(*merges: dict, **sweep: object) -> list[str]:
    return [point.name for point in grid_points(maker_of(*merges, **sweep))]


def test_lists_and_ranges_are_combined_in_order():
    varied = {
        "method.density": [0.1, 0.2],
        "coefficients.lambda": {"from": 0.1, "to": 0.3, "step": 0.1},
    }
    points = grid_points(maker_of({"method": "ties", "vary": varied}))
    assert [point.name for point in points] == [
        f"ties, density={density}, lambda={scale}"
        for density in (0.1, 0.2)
        for scale in (0.1, 0.2, 0.3)
    ]
    assert points[5].entry.coefficients.lambda_ == 0.3  # not 0.30000000000000004
    assert points[5].entry.method.density == 0.2
    assert points[5].values == {"method.density": 0.2, "coefficients.lambda": 0.3}


def test_methods_coefficients_and_models_vary_as_a_whole():
    varied = {
        "method": ["task_arithmetic", {"name": "ties", "density": 0.5}],
        "coefficients": ["uniform", {"source": "nan", "target": "task_vector"}, [0.3, 0.4]],
        "models": [["digits", "texture"]],
    }
    points = grid_points(maker_of({"name": "M", "vary": varied}))
    assert len(points) == 6
    assert (
        points[0].name == "M, method=task_arithmetic, coefficients=uniform, models=digits+texture"
    )
    assert points[-1].entry.coefficients.values == (0.3, 0.4)
    assert points[-1].entry.models == ("digits", "texture")
    assert len({point.folder for point in points}) == 6


def test_a_key_below_a_section_is_set_in_its_long_form():
    merge = {**TA, "coefficients": "nan", "vary": {"coefficients.scope": ["model", "layer"]}}
    points = grid_points(maker_of(merge))
    assert [point.entry.coefficients.scope for point in points] == ["model", "layer"]
    assert {point.entry.coefficients.source for point in points} == {"nan"}


def test_a_logarithmic_range_has_equal_ratios():
    varied = {"coefficients.lambda": {"from": 0.01, "to": 1, "steps": 3, "log": True}}
    points = grid_points(maker_of({**TA, "vary": varied}))
    assert [point.values["coefficients.lambda"] for point in points] == [0.01, 0.1, 1]


def test_the_same_merge_comes_once():
    assert names_of({**TA, "vary": {"coefficients.lambda": [0.3, 0.3, 0.4]}}) == [
        "TA, lambda=0.3",
        "TA, lambda=0.4",
    ]


def test_entries_of_one_method_are_numbered():
    ties = {"method": "ties"}
    vary = {"vary": {"coefficients.lambda": [1]}}
    other = {"method": {"name": "ties", "density": 0.5}, **vary}
    assert names_of({**ties, **vary}, other) == ["ties 1, lambda=1", "ties 2, lambda=1"]


def test_a_million_points_are_refused_at_once():
    axis = {"from": 0, "to": 1, "steps": 1000}
    merge = {"method": "ties", "vary": {"coefficients.lambda": axis, "method.density": axis}}
    begun = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        grid_points(maker_of(merge))
    assert time.monotonic() - begun < 1
    assert str(caught.value) == (
        "The sweep has 1,000,000 points, more than `sweep.max_points` (1,000); most of them are "
        "ties: 1,000 coefficients.lambda x 1,000 method.density. Give fewer values, draw some with "
        "`search: {name: random, points: 24}`, or raise `sweep.max_points`."
    )
    with pytest.raises(ConfigError, match="has 1,000,000 points, more than"):
        open_search(maker_of(merge, search={"name": "random", "points": 1_000_000}), 0)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"merges": []}, "at least 1 item"),
        ({"merges": [{**TA, "vary": {"coefficients.lambda": []}}]}, "no values for coeff"),
        ({"merges": [{**TA, "vary": {"density": [1]}}]}, "'density', expected a key that begins"),
        ({"merges": [{"vary": {"dtype": ["float32"]}}]}, "has no `method`"),
        ({"merges": [{**TA, "vary": {"coefficients.lambda": {"from": 1, "to": 0}}}]}, "exchange"),
        ({"merges": [TA], "search": "random"}, "`points` goes with"),
        ({"merges": [TA], "dev_share": 1}, "less than 1"),
    ],
)
def test_sections_that_mean_nothing_are_refused(sweep: dict, message: str):
    with pytest.raises(ValidationError, match=message):
        config_of(*sweep.pop("merges"), **sweep)


def test_combinations_that_no_recipe_may_have_are_all_listed():
    varied = {
        "coefficients.source": ["uniform", "nan"],
        "coefficients.target": ["weights", "task_vector"],
        "method.density": [0.5, 1.5],
    }
    merge = {"method": "ties", "vary": varied}
    with pytest.raises(ConfigError) as caught:
        grid_points(maker_of(merge))
    first, *lines, last = str(caught.value).splitlines()
    assert first == "5 of the sweep's merges are none that a recipe may have:"
    assert lines[0].startswith("ties, source=uniform, target=weights, density=1.5: method.density:")
    assert "skip_invalid: true" in last
    with pytest.raises(ConfigError, match=r"^1 of the sweep's merges is none that a recipe"):
        grid_points(maker_of({"method": "ties", "vary": {"method.density": [0.5, 1.5]}}))
    names = names_of(merge, skip_invalid=True)
    assert names == [
        "ties, source=uniform, target=weights, density=0.5",
        "ties, source=nan, target=weights, density=0.5",
        "ties, source=nan, target=task_vector, density=0.5",
    ]


def test_a_sweep_of_which_nothing_is_left_is_refused():
    merge = {"method": "slerp", "vary": {"coefficients.lambda": [2, 3]}}
    with pytest.raises(ConfigError, match=r"The sweep has no points: .*`lambda` would cancel"):
        grid_points(maker_of(merge, skip_invalid=True))


def test_a_model_that_there_is_not_is_named():
    with pytest.raises(ConfigError, match=r"no model 'digit', have .*did you mean 'digits'"):
        grid_points(maker_of({**TA, "vary": {"models": [["digit"]]}}))


def test_a_range_without_steps_is_no_grid():
    merge = {**TA, "vary": {"coefficients.lambda": {"from": 0, "to": 1}}}
    with pytest.raises(ConfigError, match=r"range of coefficients.lambda .* `steps`"):
        grid_points(maker_of(merge))


def test_random_draws_are_seeded_different_and_within_bounds():
    merge = {**TA, "vary": {"coefficients.lambda": {"from": 0.1, "to": 1, "log": True}}}
    search = {"name": "random", "points": 20}
    first, again, other = (
        [
            point.values["coefficients.lambda"]
            for point in random_points(maker_of(merge, search=search), seed)
        ]
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert len(set(first)) == 20
    assert all(0.1 <= value <= 1 for value in first)


def test_random_draws_from_a_small_grid_end():
    merge = {**TA, "vary": {"coefficients.lambda": [0.1, 0.2, 0.3]}}
    points = random_points(maker_of(merge, search={"name": "random", "points": 50}), 0)
    assert sorted(point.values["coefficients.lambda"] for point in points) == [0.1, 0.2, 0.3]
    *names, count, fewer = listed(config_of(merge, search={"name": "random", "points": 50}))
    assert (len(names), count) == (3, "3 merges")
    assert fewer == (
        "sweep.search.points asks for 50 merges, but 5,000 draws found no more than 3 that differ "
        "and that a recipe may have."
    )
    assert listed(config_of(merge, search={"name": "random", "points": 3}))[-1] == "3 merges"


def test_the_list_names_every_merge():
    assert listed(config_of({**TA, "vary": {"coefficients.lambda": [0.1, 0.2]}})) == [
        "TA, lambda=0.1",
        "TA, lambda=0.2",
        "2 merges",
    ]


def test_optuna_climbs_and_repeats_itself():
    pytest.importorskip("optuna", reason="Optuna is not installed")
    merges = (
        {**TA, "vary": {"coefficients.lambda": {"from": 0, "to": 2}}},
        {"method": "ties", "vary": {"coefficients": ["uniform", "nan"]}},
    )
    search = {"name": "optuna", "points": 40, "batch": 4}

    def run(seed: int) -> list[tuple[str, float]]:
        found: dict[str, float] = {}
        batches = open_search(maker_of(*merges, search=search), seed)
        batch = next(batches)
        try:
            while True:
                assert 1 <= len(batch) <= 4
                for point in batch:
                    scale = point.entry.coefficients.lambda_
                    found[point.name] = -abs(scale - 1.3) if point.group == "TA" else -5
                batch = batches.send({point.name: found[point.name] for point in batch})
        except StopIteration:
            return list(found.items())

    first = run(0)
    assert first == run(0)
    assert first != run(1)
    assert max(score for _, score in first) > -0.1
    late = [score for _, score in first[-12:]]
    assert sum(score > -0.5 for score in late) > len(late) / 2  # it looks where scores are high


def test_optuna_that_is_not_installed_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.extras.find_spec", lambda module: None)
    with pytest.raises(MissingExtraError, match=r"optuna is not installed: .*nan-merge\[sweep\]"):
        open_search(maker_of(TA, search={"name": "optuna", "points": 4}), 0)


def test_parts_lacking_tensors_and_configs_are_as_in_any_merge():
    shared = {
        "modules": {"vision_tower": {"path": "clip"}, "projector": "digits"},
        "missing": {"image_newline": "base"},
        "config": {"path": "hub"},
    }
    points = grid_points(maker_of({**TA, **shared, "vary": {"coefficients.lambda": [0.1, 0.2]}}))
    assert len(points) == 2
    for point in points:
        written = point.entry.model_dump(mode="json")
        assert {key: written[key] for key in shared} == shared
    wish = {**TA, "modules": {"projector": "digit"}}
    with pytest.raises(ConfigError, match="modules: projector: 'digit' is none of"):
        grid_points(maker_of(wish))
    with pytest.raises(ValidationError, match="`vary` has 'missing'"):
        config_of({**TA, "vary": {"missing": ["base"]}})
