from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from pipelines.plots import accuracy_plot
from pipelines.records import model_metrics
from pipelines.report import baseline_sheet
from pipelines.results import read_results, write_results
from pipelines.sheet import Cell
from pipelines.table import markdown_table


def test_an_average_from_the_samples_wins(tiny):
    known = replace(tiny, averages={"TA": (0.7, 0.04)})
    assert known.average("TA") == (0.7, 0.04)
    assert known.average("TIES") == tiny.average("TIES")


def test_averages_and_differences_are_read_back(tiny, tmp_path):
    known = replace(tiny, averages={"TA": (0.7, 0.04)}, differences={"TIES": (-0.01, 0.02)})
    write_results(known, tmp_path)
    assert read_results(tmp_path) == known


def test_an_unknown_error_is_null_in_json_and_a_dash_in_tables(tiny, tmp_path):
    rows = tuple(replace(row, standard_error=math.nan) for row in tiny.rows)
    unknown = replace(
        tiny, rows=rows, averages={"TA": (0.7, math.nan)}, differences={"TIES": (0.01, math.nan)}
    )
    path = write_results(unknown, tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for file in (path, tmp_path / "run.json"):
        json.loads(file.read_text(), parse_constant=refuse)
    assert read_results(tmp_path) == unknown
    assert "70.0 ± — |" in markdown_table(unknown)
    assert "± —: not known, because one sample alone shows no spread." in markdown_table(unknown)
    assert "nan" not in markdown_table(unknown)
    differences = baseline_sheet(unknown)
    assert differences is not None
    assert differences.lines[1].cells[1:] == (Cell("+1.00", "—"), Cell("—"))
    assert "not known" in differences.caption
    assert "nan" not in accuracy_plot(unknown).replace("nan-merge", "")
    metrics = model_metrics(unknown, "TA")
    assert metrics["top1/average"] == 0.7 and not [each for each in metrics if "_se/" in each]


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
