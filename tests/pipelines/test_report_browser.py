"""The report as its readers see it: in a real browser, from disk, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipelines.compare import compare_runs
from pipelines.compared_models import AnswerReader
from pipelines.comparison_page import write_comparison_page
from pipelines.report import write_report, write_seeds_report
from tests.browser import CONTRASTS, HEADINGS, OVERFLOWING, UNNAMED, open_chromium, opened
from tests.finished_runs import write_image_run
from tests.swept_results import make_swept_results

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from pipelines.results import RunResults

LEAST_CONTRAST = 4.5
WIDE, PHONE, PAPER = 1180, 390, 718
"""CSS pixels: a desk, a phone, and A4 less its margins."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_chromium() as found:
        yield found


@pytest.fixture(scope="module")
def sweep(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    swept = make_swept_results()
    predictions = {
        model: {task: f"predictions/{place}/{task}.jsonl" for task in swept.benchmarks()}
        for place, model in enumerate(swept.models())
    }
    found = replace(swept, predictions=predictions)
    return write_report(found, tmp_path_factory.mktemp("sweep"))


@pytest.fixture
def run(browser: Browser, results: RunResults, tmp_path: Path) -> Path:
    return write_report(results, tmp_path)


def check(browser: Browser, path: Path) -> None:
    """All that every report owes its readers."""
    for width, scheme in ((WIDE, "light"), (PHONE, "dark")):
        with opened(browser, path, width=width, scheme=scheme) as found:
            page = found.page
            assert found.requests == [path.resolve().as_uri()]
            assert (found.failed, found.complaints) == ([], [])
            unfolded = "() => document.querySelectorAll('details').forEach(x => x.open = true)"
            page.evaluate(unfolded)
            assert page.evaluate(OVERFLOWING) == []
            assert page.evaluate(UNNAMED) == []
            contrasts = page.evaluate(CONTRASTS)
            assert len(contrasts) > 50
            assert min(contrasts)[0] >= LEAST_CONTRAST, min(contrasts)
            levels = page.evaluate(HEADINGS)
            assert levels[0] == 1 and levels.count(1) == 1
            assert all(after <= level + 1 for level, after in pairwise(levels))
            paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    with opened(browser, path, width=PAPER, scheme="dark") as found:
        found.page.emulate_media(media="print")
        assert found.page.evaluate(OVERFLOWING) == []
        contrasts = found.page.evaluate(CONTRASTS)
        assert min(contrasts)[0] >= LEAST_CONTRAST, min(contrasts)
        paper = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == "rgb(255, 255, 255)"
        assert found.page.pdf(format="A4").startswith(b"%PDF")


def test_the_report_of_a_sweep(browser: Browser, sweep: Path):
    check(browser, sweep)


def test_the_report_of_a_run(browser: Browser, run: Path):
    check(browser, run)


def test_the_page_of_a_comparison(browser: Browser, tmp_path: Path):
    tasks, answers = ("letters", "photo"), {"TA": 0.7, "TIES": 0.75, "DARE": 0.5, "<b>&": 0.71}
    runs = [
        write_image_run(
            tmp_path / f"run {place}",
            {model: dict.fromkeys(tasks, ("1" * int(100 * right)).ljust(100, "0"))},
        )
        for place, (model, right) in enumerate(answers.items())
    ]
    found = compare_runs(runs, None, AnswerReader(), 200)
    check(browser, write_comparison_page(found, tmp_path))


def test_the_report_over_seeds(browser: Browser, tiny_seeds: list[RunResults], tmp_path: Path):
    path = write_seeds_report(tiny_seeds, tmp_path)
    with opened(browser, path, width=PHONE) as found:
        assert (found.failed, found.complaints) == ([], [])
        assert found.page.evaluate(OVERFLOWING) == []
        assert found.page.evaluate(UNNAMED) == []


def test_faults_of_a_page_are_found(browser: Browser, tmp_path: Path):
    path = tmp_path / "bad.html"
    path.write_text(
        '<html style="background: #fff"><body style="margin: 0"><h1 style="color: #888">pale</h1>'
        '<img src="https://example.org/x.png"><table><tr><th>x</th></tr></table><main><svg></svg>'
        '</main><div style="width: 500px">wide</div><script>nothing.here()</script></body></html>',
        encoding="utf-8",
    )
    with opened(browser, path, width=PHONE) as found:
        found.page.wait_for_load_state()
        assert found.failed == ["https://example.org/x.png"]
        assert any("nothing is not defined" in each for each in found.complaints)
        assert {"DIV: wide", "the page itself"} <= set(found.page.evaluate(OVERFLOWING))
        assert min(found.page.evaluate(CONTRASTS))[0] == pytest.approx(3.54, abs=0.01)
        unnamed = " ".join(found.page.evaluate(UNNAMED))
        assert all(tag in unnamed for tag in ("<img", "<svg", "<th", "<table", "<tr"))
