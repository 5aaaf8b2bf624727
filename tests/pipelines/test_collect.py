from __future__ import annotations

import math
from pathlib import Path

import pytest

from evaluators.predictions import Prediction, write_predictions
from nan_merge.errors import DataError
from nan_merge.recipe import MergeRecipe
from pipelines.collect import merge_summary, with_averages
from pipelines.evaluate import Candidate
from pipelines.results import ResultRow, RunResults

# Model -> benchmark -> right or wrong; the samples of both benchmarks lie in clusters x, y, z.
CLUSTERS = {"a": "xy", "b": "xxyz"}
OUTCOMES = {
    "Pretrained": {"a": "00", "b": "0001"},
    "a": {"a": "10", "b": "0000"},
    "b": {"a": "00", "b": "1100"},
    "TA": {"a": "10", "b": "1000"},
    "TIES": {"a": "10", "b": "1100"},
}


def row(model: str, kind: str, benchmark: str) -> ResultRow:
    method = {"TA": "task_arithmetic", "TIES": "ties"}.get(model, "")
    return ResultRow(model, kind, method, "", benchmark, "top1", 0.5, 0.1, 4)  # type: ignore[arg-type]


@pytest.fixture
def candidates(tmp_path: Path) -> list[Candidate]:
    for model, by_benchmark in OUTCOMES.items():
        for benchmark, outcomes in by_benchmark.items():
            predictions = [
                Prediction(f"{benchmark}/{place}", cluster, "1", right, 0.0)
                for place, (cluster, right) in enumerate(
                    zip(CLUSTERS[benchmark], outcomes, strict=True)
                )
            ]
            write_predictions(tmp_path / model / f"{benchmark}.jsonl", "key", predictions)
    return [Candidate(model, tmp_path, tmp_path / model) for model in OUTCOMES]


@pytest.fixture
def results() -> RunResults:
    models = ("Pretrained", "pretrained"), ("Individual", "individual")
    models += ("TA", "merged"), ("TIES", "merged")
    rows = tuple(row(model, kind, name) for model, kind in models for name in "ab")
    return RunResults(name="toy", seed=0, rows=rows, merges=())


def test_averages_take_into_account_that_benchmarks_share_sources(results, candidates):
    found = with_averages(results, candidates)
    # By hand in tests/evaluators/test_scores.py. Individual's are of model a on a, and b on b.
    expected = pytest.approx((0.5, math.sqrt(78 / 512)))
    assert found.averages["TIES"] == found.averages["Individual"] == expected
    assert found.average("TIES") == found.averages["TIES"]
    assert found.averages["Pretrained"][0] == 0.125
    assert found.rows == results.rows


def test_differences_to_the_baseline_are_paired_by_sample(results, candidates):
    found = with_averages(results, candidates)
    # TIES gains one of the four samples of b, in x: that weighs 1/8. Residuals over b's weight of
    # 1/8: x 3/4 - 1/4, y -1/4, z -1/4. sqrt(3 / 2 * (4 + 1 + 1) / 16) / 8 = 3/32
    assert found.differences == {"TIES": pytest.approx((0.125, 3 / 32))}


def test_a_model_that_misses_a_benchmark_has_neither(results, candidates):
    rows = tuple(each for each in results.rows if (each.model, each.benchmark) != ("TIES", "b"))
    found = with_averages(RunResults(name="toy", seed=0, rows=rows, merges=()), candidates)
    assert set(found.averages) == {"Pretrained", "Individual", "TA"}
    assert found.differences == {}
    assert found.average("TIES") is None


def test_without_merges_there_is_no_baseline(results, candidates):
    rows = results.rows[:4]
    found = with_averages(RunResults(name="toy", seed=0, rows=rows, merges=()), candidates)
    assert set(found.averages) == {"Pretrained", "Individual"}
    assert found.differences == {}


def test_lost_predictions_are_named(results, candidates):
    (candidates[-1].predictions / "b.jsonl").unlink()
    with pytest.raises(DataError, match=r"TIES/b\.jsonl"):
        with_averages(results, candidates)


def test_coefficients_by_tensor_are_kept_as_their_layers_means():
    by_tensor = {"layers.10.b": 0.3, "layers.2.a": 0.1, "layers.2.b": 0.2, "head": 1.0}
    manifest = {
        "norms": {},
        "alpha": {"m": 1.0},
        "coefficients": {"m": by_tensor, "n": {"layers.2.a": 0.5}},
        "scale": 1.0,
    }
    content = {"base": "b", "models": ["m", "n"], "method": "task_arithmetic"}
    recipe = MergeRecipe.model_validate(content)
    found = merge_summary("M", recipe, manifest, Path("checkpoints/m"))
    assert [*found.layers] == ["head", "layers.2", "layers.10"]
    assert found.layers["layers.2"] == {"m": pytest.approx(0.15), "n": 0.5}
    assert found.layers["layers.10"] == {"m": 0.3}
    assert (
        merge_summary("M", recipe, manifest | {"coefficients": {"m": 0.3}}, Path("m")).layers == {}
    )
