from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipelines.results import read_results, write_results


def test_an_average_from_the_samples_wins(tiny):
    known = replace(tiny, averages={"TA": (0.7, 0.04)})
    assert known.average("TA") == (0.7, 0.04)
    assert known.average("TIES") == tiny.average("TIES")


def test_averages_and_differences_are_read_back(tiny, tmp_path):
    known = replace(tiny, averages={"TA": (0.7, 0.04)}, differences={"TIES": (-0.01, 0.02)})
    write_results(known, tmp_path)
    assert read_results(tmp_path) == known


def test_results_of_an_older_version_are_still_read(tiny, tmp_path):
    write_results(tiny, tmp_path)
    path = tmp_path / "run.json"
    content = json.loads(path.read_text())
    del content["averages"], content["differences"]
    path.write_text(json.dumps(content))
    assert read_results(tmp_path) == tiny


def test_without_the_samples_an_average_adds_independent_errors(tiny):
    # errors .03 and .04: sqrt(.0009 + .0016) / 2 = .025
    assert tiny.average("TA") == pytest.approx((0.7, 0.025))


def test_a_model_that_misses_a_benchmark_has_no_average(results):
    assert results.average("../weird/name: 100%|*_`") is None
    assert results.average("no such model") is None


def test_written_results_are_read_back(results, tmp_path):
    path = write_results(results, tmp_path)
    assert read_results(tmp_path) == results
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert len(rows) == 15 * 7 - 1
    assert rows[0]["model"] == "pretrained"


def test_results_without_rows_have_no_models(results):
    empty = replace(results, rows=(), merges=())
    assert (empty.models(), empty.benchmarks()) == ([], [])
