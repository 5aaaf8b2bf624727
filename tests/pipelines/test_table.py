from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from pipelines import table
from pipelines.sheet import Cell, markdown, short_labels


def printed(drawn, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(drawn)
    return console.file.getvalue()


def cells(sheet, label: str) -> list[str]:
    line = next(line for line in sheet.lines if line.label == label)
    return [cell.inline + "*" * cell.best for cell in line.cells]


def test_scores_are_percent_and_the_average_has_its_error(tiny):
    sheet = table.results_sheet(tiny)
    assert sheet.columns == ("a", "b", "average")
    # TIES: (.64 + .78) / 2 = .71, sqrt(.06^2 + .08^2) / 2 = .05
    assert cells(sheet, "TIES") == ["64.0*", "78.0", "71.0 ± 5.0*"]
    assert cells(sheet, "TA") == ["60.0", "80.0*", "70.0 ± 2.5"]


def test_the_caption_says_what_errors_are_over(tiny):
    assert "one standard error over test samples;" in table.results_sheet(tiny).caption
    known = replace(tiny, averages={"TA": (0.7, 0.04)})
    assert "error over the test set's sources;" in table.results_sheet(known).caption
    assert cells(table.results_sheet(known), "TA")[-1] == "70.0 ± 4.0"


def test_only_merged_models_can_be_best_and_ties_share_the_mark(tiny):
    rows = [replace(row, value=0.9) if row.model != "base" else row for row in tiny.rows]
    rows = [replace(row, value=1.0) if row.model == "base" else row for row in rows]
    sheet = table.results_sheet(replace(tiny, rows=tuple(rows)))
    assert not any(cell.best for cell in sheet.lines[0].cells)
    assert all(cell.best for line in sheet.lines[1:] for cell in line.cells)


def test_groups_are_the_unmerged_models_and_then_each_method(results):
    sheet = table.results_sheet(results)
    opened = [line.label for line in sheet.lines if line.opens_group]
    assert opened == ["Weight averaging", "Task Arithmetic (0.3)", "TIES (0.3)"]


def test_a_missing_score_and_its_average_are_dashes(results):
    assert cells(table.results_sheet(results), "../weird/name: 100%|*_`")[-2:] == ["—", "—"]


def test_the_terminal_table_fits_100_columns_and_marks_without_colour(results):
    text = printed(table.results_table(results))
    assert max(map(len, text.splitlines())) <= 100
    assert "TIES + NAN (τ, norm scale)" in text
    assert "TA: Task Arithmetic, τ: task vectors" in text
    assert "*72.5 ± 0.7" in text
    assert "n = 500" in " ".join(text.split())
    assert "A <b>bold</b> &" in text


def test_digits_stand_under_digits_beside_marked_cells(tiny):
    lines = printed(table.results_table(tiny)).splitlines()
    marked, plain = (next(line for line in lines if name in line) for name in (" TIES ", " TA "))
    assert marked.index("64.0") == plain.index("60.0")
    assert marked.index("78.0") == plain.index("80.0")


def test_seeds_give_mean_and_sample_deviation(tiny_seeds):
    sheet = table.seeds_sheet(tiny_seeds)
    # a: 64, 65, 67: mean 65.33, deviations -1.33 -.33 1.67, sqrt(4.667 / 2) = 1.53
    assert cells(sheet, "TIES") == ["65.3 ± 1.5*", "79.3 ± 1.5", "72.3 ± 1.5*"]
    assert cells(sheet, "TA") == ["60.0 ± 0.0", "80.0 ± 0.0*", "70.0 ± 0.0"]
    assert "seeds 0, 1, 2" in sheet.caption


def test_a_score_that_one_seed_lacks_is_a_dash(tiny_seeds):
    tiny_seeds[1] = replace(tiny_seeds[1], rows=tiny_seeds[1].rows[:-1])
    assert cells(table.seeds_sheet(tiny_seeds), "TIES") == ["65.3 ± 1.5*", "—", "—"]


def test_differences_are_paired_by_seed(tiny_seeds):
    sheet = table.differences_sheet(tiny_seeds, [("TIES", "TA"), ("TA", "nobody")])
    # 71, 72, 74 minus 70: mean 2.33
    assert cells(sheet, "TIES − TA") == ["+1.00", "+2.00", "+4.00", "+2.33 ± 1.53"]
    assert cells(sheet, "TA − nobody") == ["—"] * 4


def test_one_seed_has_no_spread(tiny):
    assert cells(table.seeds_sheet([tiny]), "TA") == ["60.0", "80.0*", "70.0"]
    assert cells(table.differences_sheet([tiny], [("TIES", "TA")]), "TIES − TA")[-1] == "+1.00"


@pytest.mark.parametrize("number", [0, 2])
def test_seeds_must_be_given_and_differ(tiny, number):
    with pytest.raises(ValueError, match=r"seeds must differ|no results"):
        table.seeds_sheet([tiny] * number)


def test_seven_tasks_over_seeds_fit_100_columns(seeds):
    text = printed(table.seeds_table(seeds))
    assert max(map(len, text.splitlines())) <= 100
    assert "±0.4" in text
    assert printed(table.seed_differences(seeds, [("TIES (0.3)", "Weight averaging")]))


def test_markdown_is_a_table_with_escaped_names_and_bold_best(results, seeds):
    lines = table.markdown_table(results).splitlines()
    assert lines[0].startswith("| model | digits |")
    assert lines[1] == "| --- |" + " ---: |" * 8
    assert r"| ../weird/name: 100%\|\*\_\` | 92.7 |" in lines[16]
    assert any("**72.5 ± 0.7**" in line for line in lines)
    assert "bold: best merged model" in lines[-1]
    assert " ± 0.4 |" in table.markdown_seeds_table(seeds)
    pairs = [("Weight averaging", "Task Arithmetic (0.3)")]
    assert "+1.23 ± 0.80" in markdown(table.differences_sheet(seeds, pairs))


def test_labels_are_abbreviated_alike_and_only_when_too_wide():
    names = ["Task Arithmetic", "Task Arithmetic of task vectors"]
    assert short_labels(names, 40) == (names, "")
    assert short_labels(names, 20) == (["TA", "TA of task vectors"], " TA: Task Arithmetic.")


def test_a_cell_without_spread_is_its_number():
    assert (Cell("1.0").inline, Cell("1.0", "0.1").inline) == ("1.0", "1.0 ± 0.1")
