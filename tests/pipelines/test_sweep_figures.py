from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from pipelines.plots import layered_merges, layers_plot
from pipelines.report_sheets import baseline_sheet, layer_sheets, sources_sheet
from pipelines.results import RunResults, SweepPoint
from pipelines.sweep_axes import layouts
from pipelines.sweep_sections import SweepSection, sweep_sections
from pipelines.sweep_table import shown_results
from pipelines.table import merged_models
from tests.swept_results import LAMBDAS, TASKS, make_swept_results


@pytest.fixture(scope="module")
def swept() -> RunResults:
    return make_swept_results()


@pytest.fixture(scope="module")
def sections(swept) -> list[SweepSection]:
    return sweep_sections(swept)


def points(*values: dict[str, object]) -> dict[str, SweepPoint]:
    return {
        f"m{place}": SweepPoint("M", each, place / 100, 0.01, place / 100, False)
        for place, each in enumerate(values)
    }


def test_axes_are_the_keys_with_most_values_and_numbers_come_first():
    layout, *_ = layouts(
        points(
            *(
                {"coefficients": kind, "method.density": density, "coefficients.lambda": scale}
                for kind in ("uniform", "nan", {"source": "nan", "target": "task_vector"})
                for density in (0.2, 0.1)
                for scale in (1, 0.3, 0.6, 0.4)
            )
        )
    )
    assert [axis.name for axis in layout.axes] == ["lambda", "density", "coefficients"]
    assert layout.across.values == (0.3, 0.4, 0.6, 1)
    assert layout.down is not None and layout.down.labels == ["0.1", "0.2"]
    fixed = [pane.fixed for pane in layout.panes]
    assert fixed == ["coefficients=uniform", "coefficients=nan", "coefficients=nan task_vector"]
    # The first point: density 0.2 is the second row, λ = 1 the last column.
    assert layout.panes[0].cells[1, 3] == "m0"
    assert layout.setting("m0") == "lambda=1, density=0.2, coefficients=uniform"


def test_what_does_not_vary_is_no_axis_and_whole_numbers_are_like_others():
    assert layouts(points({"method.density": 0.1})) == []
    (layout,) = layouts(points({"a": 1, "b": [1, 2]}, {"a": 1.0, "b": [1, 3]}))
    assert [axis.labels for axis in layout.axes] == [["1+2", "1+3"]]
    assert layout.down is None and len(layout.panes) == 1


def test_draws_are_no_grid():
    draws = [{"x": place / 7, "y": place * 5 % 7} for place in range(7)]
    (layout,) = layouts(points(*draws))
    assert layout.panes == ()  # 7 of 49 cells
    (layout,) = layouts(points(*({"x": each["x"]} for each in draws)))
    assert len(layout.panes) == 1  # along one key they are a line


def test_too_many_panes_are_drawn_as_dots():
    names = [{"x": x, "y": y, "z": f"z{z}"} for x in range(2) for y in range(2) for z in range(13)]
    (layout,) = layouts(points(*names))
    assert [axis.name for axis in layout.axes] == ["x", "y", "z"] and layout.panes == ()


def test_every_entry_has_its_kind_of_figure_and_a_table(sections):
    assert [section.title for section in sections] == ["TA", "TIES", "DARE", "drawn"]
    drawn = [[figure.heading for figure in section.figures] for section in sections]
    assert drawn == [[""], [""], ["coefficients=uniform", "coefficients=nan"], [""]]
    kinds = [label_of(section.figures[0].svg).partition(" of ")[0] for section in sections]
    assert kinds == ["Lines", "Heat maps", "Heat maps", "Dots"]
    assert [len(section.sheet.lines) for section in sections] == [10, 14, 20, 16]
    for section in sections:
        assert section.sheet.columns == ("dev average", "average", *TASKS)


def test_the_table_holds_the_numbers_that_are_drawn(swept, sections):
    ties = sections[1]
    name = "TIES, density=0.2, lambda=0.4"
    line = next(line for line in ties.sheet.lines if line.label == "lambda=0.4, density=0.2 †")
    average = swept.average(name)
    assert average is not None
    assert line.cells[0].inline == f"{swept.sweep[name].dev * 100:.1f} ± 1.7"
    assert line.cells[1].inline == f"{average[0] * 100:.1f} ± 1.3"
    rows = {row.benchmark: row.value for row in swept.rows if row.model == name}
    assert [cell.text for cell in line.cells[2:]] == [f"{rows[task] * 100:.1f}" for task in TASKS]
    assert "Framed: lambda=0.4, density=0.2, which is the best on the dev split." in ties.caption
    assert f"with an average of {average[0] * 100:.1f} %" in label_of(ties.figures[0].svg)


def test_the_selected_cell_is_framed_once_in_every_panel_of_its_pane(sections):
    ties, dare = sections[1:3]
    frames = [
        figure.svg.count("fill: none; stroke: #ffffff") for figure in (*ties.figures, *dare.figures)
    ]
    assert frames == [9, 9, 0]  # the dev average, the average, seven tasks


def test_a_merge_that_misses_has_no_cell(sections):
    # Three densities by five values of λ, of which one merge failed, in nine panels.
    cells = re.findall(r'clip-path="[^"]*" style="fill: #', sections[1].figures[0].svg)
    assert len(cells) == (3 * len(LAMBDAS[1::2]) - 1) * 9


def test_names_are_text_and_never_markup(swept):
    hostile = '"><script>alert(1)</script>'
    sweep = {
        name: replace(point, group=hostile, values={hostile: place})
        for place, (name, point) in enumerate([*swept.sweep.items()][:6])
    }
    (section,) = sweep_sections(replace(swept, sweep=sweep))
    for figure in section.figures:
        assert ET.fromstring(figure.svg).get("aria-label", "").startswith(f"Lines of {hostile}")


def test_an_objective_of_one_benchmark_is_shown_as_such(swept):
    sweep = {name: replace(each, objective=each.dev / 2) for name, each in swept.sweep.items()}
    section = sweep_sections(replace(swept, sweep=sweep))[0]
    assert section.sheet.columns[0] == "dev objective"
    first = next(iter(sweep.values()))
    assert section.sheet.lines[0].cells[0].inline == f"{first.objective * 100:.1f}"


def test_differences_keep_their_baseline_where_it_is_not_shown(swept):
    first, *others = merged_models(swept)
    sheet = baseline_sheet(swept, others[-2:])
    assert sheet is not None
    assert [line.label for line in sheet.lines] == [first, *others[-2:]]
    kept = swept.differences[others[-1]][0]
    assert sheet.lines[-1].cells[1].inline == f"{kept * 100:+.2f} ± 0.60"
    assert sheet.title == f"Differences to {first}"


def test_every_number_can_be_traced_to_its_files(swept):
    name = merged_models(swept)[0]
    own = {task: f"predictions/ta-1/{task}.jsonl" for task in TASKS}
    individual = {task: f"predictions/{task}/{task}.jsonl" for task in TASKS}
    found = replace(swept, predictions={"Individual": individual, name: own})
    sheet = sources_sheet(found)
    assert sheet is not None
    rows = {line.label: [cell.text for cell in line.cells] for line in sheet.lines}
    assert rows == {
        "Individual": ["predictions", "—"],
        name: ["predictions/ta-1", "checkpoints/m"],
    }


def label_of(svg: str) -> str:
    return ET.fromstring(svg).get("aria-label", "")


def test_coefficients_by_layer_are_drawn_and_told(swept):
    shown = shown_results(swept)
    merges = layered_merges(shown)
    assert {merge.method for merge in merges} == {"dare"} and 0 < len(merges) <= 12
    label = label_of(layers_plot(shown))
    assert label.startswith(f"Coefficients by layer of {merges[0].model}, ")
    sheet = layer_sheets(shown)[0]
    assert (sheet.title, sheet.columns) == (merges[0].model, TASKS)
    assert sheet.lines[11].label == "tower.blocks.11"
    assert [cell.text for cell in sheet.lines[11].cells[:2]] == ["0.3100", "0.3300"]
