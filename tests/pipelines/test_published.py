"""Published numbers beside a run's own: the form of their table, differences and intervals."""

from __future__ import annotations

import io
import math

import pytest
import yaml
from pydantic import ValidationError
from rich.console import Console
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.published import published_differences_sheet, published_sheet
from pipelines.published_config import Published
from pipelines.results import PairDifference, ResultRow, RunResults, read_results, write_results
from pipelines.sheet import markdown, rich_table

PART = "mmlu (3 of 57 subsets)"


def row(model: str, benchmark: str, value: float) -> ResultRow:
    kind = "individual" if model == "math" else "merged"
    method = "" if model == "math" else "task_arithmetic"
    return ResultRow(model, kind, method, "", benchmark, "accuracy", value, 0.021, 40)


@pytest.fixture
def results() -> RunResults:
    rows = [
        row(model, benchmark, value)
        for model, values in {"math": (0.2, 0.3), "TA": (0.4, 0.5), "TA + NAN": (0.5, 0.5)}.items()
        for benchmark, value in zip((PART, "gsm8k"), values, strict=True)
    ]
    pair = ("TA + NAN", "TA")
    return RunResults(
        name="small",
        seed=0,
        rows=tuple(rows),
        merges=(),
        averages={"math": (0.25, 0.01), "TA": (0.45, 0.02), "TA + NAN": (0.5, 0.03)},
        comparisons=(
            PairDifference(*pair, PART, 0.1, 0.05, 40),
            PairDifference(*pair, "gsm8k", 0.0, math.nan, 40),
            PairDifference(*pair, "", 0.05, 0.01, 80),
        ),
    )


def published(**changes) -> Published:
    content = {
        "source": "a table",
        "columns": {"mmlu": "MMLU"},
        "average_column": "Avg",
        "rows": {"WizardMath": "math"},
        "scores": {
            "WizardMath": {"mmlu": 54.2, "gsm8k": 46.9},
            "TA": {"mmlu": 56.3, "gsm8k": 52.7},
            "TA + NAN": {"mmlu": 56.3, "gsm8k": 64.1},
            "Ties": {"mmlu": 55.9},
        },
        "averages": {"TA": 54.4},
        "differences": [["TA + NAN", "TA"], ["Ties", "TA"]],
    }
    return Published.model_validate(content | changes)


def test_rows_columns_and_order_are_the_published_ones(results):
    sheet = published_sheet(results, published())
    assert sheet.groups == ("MMLU", "gsm8k", "Avg")
    assert sheet.columns == ("this run", "published") * 3
    assert [line.label for line in sheet.lines] == [
        "math for WizardMath",
        "TA",
        "TA + NAN",
        "Ties",
    ]
    assert [line.opens_group for line in sheet.lines] == [False, True, False, False]
    cells = [[cell.inline for cell in line.cells] for line in sheet.lines]
    assert cells[0] == ["20.0 ± 2.1", "54.2", "30.0 ± 2.1", "46.9", "25.0 ± 1.0", "50.5"]
    assert cells[1] == ["40.0 ± 2.1", "56.3", "50.0 ± 2.1", "52.7", "45.0 ± 2.0", "54.4"]
    assert cells[3] == ["—", "55.9", "—", "—", "—", "—"]
    assert "mmlu (3 of 57 subsets)" in sheet.caption
    assert "mmlu 40, gsm8k 40" in sheet.caption


def test_an_average_over_other_benchmarks_is_not_taken_for_the_published_one(results):
    only = published(
        scores={"TA": {"mmlu": 56.3}}, rows={}, averages={}, columns={}, differences=[]
    )
    (line,) = published_sheet(results, only).lines
    assert [cell.inline for cell in line.cells] == ["40.0 ± 2.1", "56.3", "40.0", "56.3"]


def test_differences_have_intervals_and_stand_beside_the_published_ones(results):
    sheet = published_differences_sheet(results, published())
    assert sheet is not None
    assert [line.label for line in sheet.lines] == ["TA + NAN − TA", "Ties − TA"]
    # 1.96 standard errors of 5 points to both sides; an unknown error has no interval.
    first, second = ([cell.inline for cell in line.cells] for line in sheet.lines)
    assert first == ["+10.0 [+0.2, +19.8]", "0.0", "0.0", "+11.4", "+5.0 [+3.0, +7.0]", "+5.8"]
    assert second == ["—", "−0.4", "—", "—", "—", "—"]


def test_a_table_without_pairs_has_no_differences(results):
    assert published_differences_sheet(results, published(differences=[])) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"differences": [["TA + NAN", "TA+NAN"]]}, "differences: 'TA\\+NAN' is no row of scores"),
        ({"averages": {"WizardMat": 1.0}}, "averages: 'WizardMat'.*did you mean 'WizardMath'"),
        ({"columns": {"mmul": "MMLU"}}, "columns: 'mmul' is no benchmark.*did you mean 'mmlu'"),
    ],
)
def test_a_name_that_the_scores_lack_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        published(**change)


def test_where_no_heading_spans_columns_both_numbers_share_one(results):
    lines = markdown(published_sheet(results, published())).splitlines()
    assert lines[0] == "| Method | MMLU | gsm8k | Avg |"
    assert "In round brackets: published." in lines[-1]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(rich_table(published_sheet(results, published())))
    text = console.export_text()
    assert "20.0 (54.2)" in text and "±2.1" in text


def test_a_finished_run_is_shown_beside_its_published_numbers(results, tmp_path):
    write_results(results, tmp_path)
    found = read_results(tmp_path)
    assert found.comparisons[0] == results.comparisons[0]
    config = {
        "name": "small",
        "base": "base",
        "models": [{"path": "math", "name": "math"}],
        "evaluate": {"benchmarks": ["mmlu", "gsm8k"]},
        "published": published().model_dump(mode="json"),
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    shown = CliRunner().invoke(app, ["show", str(tmp_path), "--published", "--markdown"])
    assert shown.exit_code == 0, shown.output
    assert "| math for WizardMath | 20.0 ± 2.1 (54.2) |" in shown.output
    assert "| TA + NAN − TA | +10.0 [+0.2, +19.8] (0.0) |" in shown.output
    del config["published"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    refused = CliRunner().invoke(app, ["show", str(tmp_path), "--published"])
    assert refused.exit_code != 0


def test_averages_alone_stand_beside_the_runs_own(results):
    rows = {"TA": {}, "TA + NAN": {}}
    alone = published(
        columns={},
        rows={},
        scores=rows,
        averages={"TA": 54.4, "TA + NAN": 60.0},
        differences=[["TA + NAN", "TA"]],
    )
    sheet = published_sheet(results, alone)
    assert (sheet.groups, sheet.columns) == (("Avg",), ("this run", "published"))
    found = [[line.label, *(cell.text for cell in line.cells)] for line in sheet.lines]
    assert found == [["TA", "45.0", "54.4"], ["TA + NAN", "50.0", "60.0"]]
    assert "this run's are over the benchmarks that it asked." in sheet.caption
    differences = published_differences_sheet(results, alone)
    assert differences is not None
    assert [cell.text for cell in differences.lines[0].cells] == ["+5.0", "+5.6"]


def test_a_row_without_scores_needs_an_average():
    with pytest.raises(ValidationError, match=r"scores\.Ties is empty: name its scores, or its av"):
        published(scores={"TA": {"mmlu": 56.3}, "Ties": {}}, rows={}, differences=[], columns={})
