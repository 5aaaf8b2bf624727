"""The tables of a report, for tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

from pipelines.published_config import Published
from pipelines.results import RunResults


class Tables(HTMLParser):
    """Tables of a page by the heading above them: rows of cells as text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self._heading = ""
        self._open = ""

    def handle_starttag(self, tag, attrs):
        if tag in ("h2", "th", "td"):
            self._open = tag
        if tag == "h2":
            self._heading = ""
        elif tag == "tr":
            self.found.setdefault(self._heading, []).append([])
        elif tag in ("th", "td"):
            self.found[self._heading][-1].append("")

    def handle_endtag(self, tag):
        if tag == self._open:
            self._open = ""

    def handle_data(self, data):
        if self._open == "h2":
            self._heading += data
        elif self._open:
            self.found[self._heading][-1][-1] += data


def tables_of(run_folder: Path) -> dict[str, list[list[str]]]:
    """The tables of a run's report, by their headings."""
    page = Tables()
    page.feed((run_folder / "report.html").read_text())
    return page.found


def assert_papers_table(run_folder: Path, results: RunResults, published: Published) -> None:
    """The report has the paper's table: each row's own scores, each beside the published one."""
    groups, header, *rows = tables_of(run_folder)[f"Beside {published.source}"]
    columns = results.benchmarks() if published.benchmarks else []  # averages may stand alone
    assert groups[1:] == [*published.columns.values(), published.average_column]
    assert header == ["Method", *["this run", "published"] * (len(columns) + 1)]
    assert len(rows) == len(published.scores)
    for (label, *cells), (row, scores) in zip(rows, published.scores.items(), strict=True):
        model = published.model_of(row)
        assert label == (row if row == model else f"{model} for {row}")
        average = results.average(model)
        own = [results.row(model, column) for column in columns]
        assert average is not None and all(own)
        values = [*(each.value for each in own if each is not None), average[0]]
        shown = [re.split(r"\s", cell.strip())[0] for cell in cells[::2]]
        assert shown == [f"{value * 100:.1f}" for value in values]
        assert [cell.strip() for cell in cells[1::2]] == _told(scores, row, published)


def _told(scores: dict[str, float], row: str, published: Published) -> Sequence[str]:
    """What stands in the columns of published numbers."""
    theirs = [scores.get(name) for name in published.columns] + [published.averages.get(row)]
    return ["—" if each is None else f"{each:.1f}" for each in theirs]
