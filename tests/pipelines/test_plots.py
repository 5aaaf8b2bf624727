from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from pipelines import plots
from pipelines.drawing import clipped

FIGURES = [plots.accuracy_plot, plots.norms_plot, plots.coefficients_plot]


@pytest.mark.parametrize("draw", FIGURES)
def test_a_figure_is_one_svg_element_without_references_outside(draw, results):
    svg = draw(results)
    assert ET.fromstring(svg).tag.endswith("svg")
    targets = re.findall(r'(?:href="|url\()([^")]*)', svg)
    assert targets and all(target.startswith("#") for target in targets)
    ids = set(re.findall(r'\bid="([^"]*)"', svg))
    assert {target[1:] for target in targets} <= ids


def test_figures_of_a_page_share_no_ids(results):
    found = [set(re.findall(r'\bid="([^"]*)"', draw(results))) for draw in FIGURES]
    found.append(set(re.findall(r'\bid="([^"]*)"', plots.accuracy_plot(results, prefix="s1"))))
    assert sum(map(len, found)) == len(set().union(*found))


@pytest.mark.parametrize("draw", FIGURES)
def test_the_same_results_draw_the_same_figure(draw, results):
    assert draw(results) == draw(results)


def test_drawing_leaves_matplotlib_as_it_was(results):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.accuracy_plot(results)
    assert dict(matplotlib.rcParams) == before


def test_many_benchmarks_take_several_rows_of_panels(results):
    more = [replace(row, benchmark=f"{row.benchmark} again") for row in results.rows]
    wide = replace(results, rows=results.rows + tuple(more))
    heights = [
        float(re.search(r'viewBox="0 0 \S+ (\S+)"', plots.accuracy_plot(run))[1])
        for run in (results, wide)
    ]
    assert heights[1] > 1.8 * heights[0]


def test_runs_without_merges_or_with_equal_norms_are_drawn(tiny):
    unmerged = replace(tiny, rows=tiny.rows[:2], model_norms={"weights": {"a": 2.0, "b": 2.0}})
    assert plots.accuracy_plot(unmerged)
    assert plots.norms_plot(unmerged)
    assert plots.coefficients_plot(unmerged)


def test_long_names_keep_the_end_that_tells_them_apart():
    names = [
        f"DARE, coefficients=uniform, drop_rate={rate}, lambda=0.{n}"
        for rate in (0.5, 0.9)
        for n in (3, 5)
    ]
    shown = [clipped(name) for name in names]
    assert len(set(shown)) == 4 and max(map(len, shown)) == 50
    assert shown[0] == "DARE, coefficients=uniform, drop_…=0.5, lambda=0.3"
    assert clipped("  short\nname ") == "short name"
