"""A table before it is drawn, and how to draw it in a terminal or in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

MISSING = "—"
UNKNOWN_ERRORS = f" ± {MISSING}: not known, because one sample alone shows no spread."
"""What a caption says where an error is unknown."""
# Seven tasks and an average leave this much of a 100-column terminal to the labels.
LABEL_WIDTH = 32
ABBREVIATIONS = (("Task Arithmetic", "TA"), ("task vectors", "τ"), ("task vector", "τ"))
# With more columns than this, "94.7 ± 0.6" does not fit on one line of a terminal.
MAX_INLINE_COLUMNS = 5


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: A number.
        spread: Its ±; may be empty.
        best: Whether it stands out.
        interval: The ends of its interval; may be empty.
        beside: Another number to compare with it; may be empty.
        below: A second line; may be empty.
    """

    text: str
    spread: str = ""
    best: bool = False
    interval: str = ""
    beside: str = ""
    below: str = ""

    @property
    def behind(self) -> str:
        """What stands behind the number: its ± or its interval."""
        return f"± {self.spread}" if self.spread else f"[{self.interval}]" if self.interval else ""

    @property
    def inline(self) -> str:
        """The cell on one line, without its mark."""
        enclosed = (f"({text})" for text in (self.beside, self.below) if text)
        return " ".join(part for part in (self.text, self.behind, *enclosed) if part)


@dataclass(frozen=True)
class Line:
    """One row of a sheet; ``opens_group`` draws a rule above it."""

    label: str
    cells: tuple[Cell, ...]
    opens_group: bool = False


@dataclass(frozen=True)
class Sheet:
    """What every form of a table (terminal, Markdown, HTML) shows.

    ``groups`` are headings over two neighbouring columns each, if there are any.
    """

    title: str
    label_header: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    caption: str
    groups: tuple[str, ...] = ()


def joined(sheet: Sheet) -> Sheet:
    """A sheet with one column for each heading over two, the second number behind the first.

    For terminals and Markdown, where no heading spans columns. Other sheets stay as they are.
    """
    if not sheet.groups:
        return sheet
    lines = tuple(
        replace(
            line,
            cells=tuple(
                replace(first, beside=second.text)
                for first, second in zip(line.cells[::2], line.cells[1::2], strict=True)
            ),
        )
        for line in sheet.lines
    )
    caption = f"{sheet.caption} In round brackets: {sheet.columns[1]}."
    return replace(sheet, columns=sheet.groups, lines=lines, caption=caption, groups=())


def spread_in_percent(error: float, decimals: int = 1) -> str:
    """What stands behind a ± for an error in [0, 1]; a dash if it is unknown (nan)."""
    return MISSING if math.isnan(error) else f"{error * 100:.{decimals}f}"


def rich_table(sheet: Sheet, width: int = 100) -> Table:
    """Draw a sheet for a terminal of ``width`` columns; its "*" stays where colours are off."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    stacked, is_joined = len(sheet.columns) > MAX_INLINE_COLUMNS, bool(sheet.groups)
    sheet = joined(sheet)
    labels, legend = short_labels([line.label for line in sheet.lines])
    table = Table(
        title=Text(sheet.title),
        caption=Text(sheet.caption + legend),
        box=box.HORIZONTALS,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
        caption_justify="left",
    )
    table.add_column(sheet.label_header, min_width=12, overflow="fold")
    for column in sheet.columns:
        table.add_column(Text(column), justify="right", overflow="fold", min_width=5)
    for label, line in zip(labels, sheet.lines, strict=True):
        if line.opens_group:
            table.add_section()
        # In 100 columns the last one, an average, has room for its ± on one line.
        last = len(line.cells) - (width >= 100 and not is_joined)
        table.add_row(
            Text(label),
            *(
                _rich_cell(cell, stacked=stacked and index < last)
                for index, cell in enumerate(line.cells)
            ),
        )
    return table


def markdown(sheet: Sheet) -> str:
    """Draw a sheet as a Markdown table with its caption below; the best cells are bold."""
    sheet = joined(sheet)
    header = [sheet.label_header, *map(_escaped, sheet.columns)]
    rows = [header, ["---", *["---:"] * len(sheet.columns)]]
    for line in sheet.lines:
        cells = [f"**{cell.inline}**" if cell.best else cell.inline for cell in line.cells]
        rows.append([_escaped(line.label), *cells])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    caption = sheet.caption.replace("*: best", "bold: best")
    return "\n".join([*lines, "", caption, ""])


def short_labels(labels: Sequence[str], width: int = LABEL_WIDTH) -> tuple[list[str], str]:
    """Abbreviate common words in all labels alike until they fit ``width``, as far as that goes.

    Returns:
        The labels, and a legend of the abbreviations to append to a caption.
    """
    shorter = [" ".join(label.split()) for label in labels]
    legend: list[str] = []
    for long, short in ABBREVIATIONS:
        found = any(long in label for label in shorter)
        if found and max(map(len, shorter)) > width:
            shorter = [label.replace(long, short) for label in shorter]
            legend.append(f"{short}: {long}")
    return shorter, f" {', '.join(legend)}." if legend else ""


def _escaped(text: str) -> str:
    text = " ".join(text.split())
    return "".join("\\" + letter if letter in "\\|*_`<>[]$~" else letter for letter in text)


def _rich_cell(cell: Cell, *, stacked: bool) -> Text:
    from rich.text import Text

    # The mark stands in front, so that digits stand under digits.
    text = replace(cell, below="").inline
    if stacked and cell.behind:
        text = replace(cell, spread="", interval="", below="").inline
        text += "\n" + cell.behind.replace("± ", "±")
    text = f"{text}\n{cell.below}" if cell.below else text
    text = f"*{text}" if cell.best else text
    return Text(text, style="bold" if cell.best else "")
