from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from nan_merge.errors import MissingExtraError
from pipelines import report
from pipelines.pages import render
from pipelines.table import results_sheet

TEXTS = ("title", "summary", "differences_svg", "notes")
SHEETS = ("summary_sheet", "by_benchmark", "by_problem", "sources")
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Tags that were left open, texts, and everything that points outside."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.references += [
            value
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "action", "data", "srcset") and value
        ]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def parsed(path) -> Page:
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert all(reference.startswith("#") for reference in page.references)
    assert not re.search(r"@import|url\((?!#)", text)
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    return page


def test_the_page_is_balanced_and_needs_nothing_else(results, tmp_path):
    page = parsed(report.write_report(results, tmp_path))
    assert page.tags.count("svg") == 3
    assert page.tags.count("table") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plots", "report.html"]


def test_names_are_text_and_never_markup(results, tmp_path):
    hostile = replace(results, name="<i>&\"'", facts={"<i>": "</dl>"}, config_yaml="</pre><i>")
    page = parsed(report.write_report(hostile, tmp_path))
    assert {"b", "i", "script"} & set(page.tags) == set()
    assert 'A <b>bold</b> & "quoted" $x$ 🐙 name' in page.texts
    assert "</pre><i>" in page.texts


def test_what_one_types_is_set_as_code_and_stays_text(tiny):
    sheet = replace(results_sheet(tiny), caption="type `a <b>` & go")
    text = render(
        "comparison.html.jinja", **dict.fromkeys(TEXTS, ""), **dict.fromkeys(SHEETS, sheet)
    )
    assert "type <code>a &lt;b&gt;</code> &amp; go" in text


def test_the_page_tells_failures_facts_configuration_and_limits(results, tmp_path):
    text = "\n".join(parsed(report.write_report(results, tmp_path)).texts)
    assert "the worker died: <killed> & gone" in text
    assert "xxh3:0123456789abcdef" in text
    assert "name: quickstart  # <not a tag> & co" in text
    assert "n = 500 test samples" in text
    assert "nothing about another training seed" in text
    assert "GPU paths of this software are unverified" in text


def test_differences_are_paired_by_sample(tiny):
    known = replace(
        tiny,
        averages={"TA": (0.7, 0.04), "TIES": (0.71, 0.05)},
        differences={"TIES": (0.01, 0.004)},
    )
    sheet = report.baseline_sheet(known)
    assert sheet is not None
    baseline, other = sheet.lines
    assert [cell.inline for cell in baseline.cells] == ["70.0", "baseline", ""]
    assert [cell.inline for cell in other.cells] == ["71.0", "+1.00 ± 0.40", "+2.5"]
    assert "paired by sample, over the test set's sources" in sheet.caption
    assert "conservative" not in sheet.caption


def test_the_page_says_what_errors_are_over(tiny, tmp_path):
    known = replace(tiny, averages={"TA": (0.7, 0.04)}, differences={"TIES": (0.01, 0.004)})
    text = "\n".join(parsed(report.write_report(known, tmp_path)).texts)
    assert "one standard error over the test set's sources" in " ".join(text.split())
    assert "sources of these samples (fonts, picture cells, scans)" in text
    assert "Where sources are few" in text
    assert "nothing about another training seed" in text
    assert "takes into account that benchmarks share sources" in text
    assert "independent." not in text.replace("do not count as independent.", "")


def test_differences_of_older_results_take_the_averages_as_independent(tiny):
    sheet = report.baseline_sheet(tiny)
    assert sheet is not None
    # 71 - 70; sqrt(2.5^2 + 5^2) = 5.59; 1 / 5.59 = .18
    baseline, other = sheet.lines
    assert [cell.inline for cell in baseline.cells] == ["70.0", "baseline", ""]
    assert [cell.inline for cell in other.cells] == ["71.0", "+1.00 ± 5.59", "+0.2"]
    assert "conservative" in sheet.caption


def test_the_baseline_is_task_arithmetic_or_else_the_first_merge(results, tiny):
    assert report.baseline_model(results) == "Task Arithmetic (0.3)"
    ties = replace(tiny, rows=tuple(row for row in tiny.rows if row.model != "TA"))
    assert report.baseline_model(ties) == "TIES"
    assert report.baseline_model(replace(tiny, rows=tiny.rows[:2])) is None


def test_coefficients_tell_apart_what_rounds_alike(results):
    sheet = report.coefficients_sheet(results)
    assert sheet is not None
    line = next(line for line in sheet.lines if line.label == "TIES (matched sum)")
    assert [cell.text for cell in line.cells] == ["—", "3.5", *["0.5000"] * 7, "3.500"]


def test_the_summary_counts_and_names_the_best(results):
    text = report.run_summary(results)
    assert text.startswith("7 fine-tuned models were merged in 13 ways")
    assert "72.5 ± 0.7 % (TIES + NAN (task vectors, norm scale))" in text
    assert "pretrained 66.9 ± 0.7 %" in text


def test_a_run_that_found_nothing_still_has_a_page(results, tmp_path):
    empty = replace(results, rows=(), merges=(), model_norms={})
    page = parsed(report.write_report(empty, tmp_path))
    assert "svg" not in page.tags


def test_seeds_have_a_page_with_paired_differences(seeds, tmp_path):
    path = report.write_seeds_report(seeds, tmp_path)
    page = parsed(path)
    assert path.name == "seeds_report.html"
    assert page.tags.count("svg") == 3
    assert "Weight averaging − Task Arithmetic (0.3)" in page.texts
    ids = re.findall(r'\bid="([^"]*)"', path.read_text(encoding="utf-8"))
    assert len(ids) == len(set(ids))


def test_a_missing_library_names_the_extra(results, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"nan-merge\[track\]"):
        report.write_report(results, tmp_path)
    assert list(tmp_path.iterdir()) == []
