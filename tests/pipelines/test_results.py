from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pipelines.results import read_results, write_results


def test_average_adds_independent_errors(tiny):
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
