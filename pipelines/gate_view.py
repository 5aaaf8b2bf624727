"""A gate's decision for people and for CI: a table, Markdown, JSON, JUnit XML."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rich.console import Console

from nan_merge.errors import NanMergeError
from nan_merge.publish import write_text_atomically
from pipelines.compare_view import p_text, points
from pipelines.gate import Finding, Rules, Verdict
from pipelines.output_files import check_output_file, write_json
from pipelines.sheet import MISSING, Cell, Line, Sheet, markdown, rich_table


@dataclass(frozen=True)
class GateFiles:
    """Files that CI reads; None is not written.

    Attributes:
        json: All numbers.
        junit: JUnit XML, a test case per benchmark and per broken limit.
        markdown: For a pull request.
    """

    json: Path | None = None
    junit: Path | None = None
    markdown: Path | None = None

    def check(self) -> None:
        """Raise `OutputError` if one of them could not be written."""
        check_output_file(self.json, (".json",))
        check_output_file(self.junit, (".xml",))
        check_output_file(self.markdown, (".md",))


@dataclass(frozen=True)
class GateReport:
    """What a gate decided.

    Attributes:
        verdict: Of all together.
        candidate: The candidate, and where its answers lie.
        baseline: The baseline, and where its answers lie.
        findings: One per benchmark, or of the average.
        breaches: Limits that the candidate breaks.
        notes: What a reader should know.
        rules: What was decided by.
        is_repeated: Whether the baseline was evaluated twice.
    """

    verdict: Verdict
    candidate: str
    baseline: str
    findings: tuple[Finding, ...]
    breaches: tuple[str, ...]
    notes: tuple[str, ...]
    rules: Rules
    is_repeated: bool


def gate_sheet(report: GateReport) -> Sheet:
    """A line per benchmark: difference, bounds, margin, p, what could be seen, verdict."""
    lines = tuple(Line(each.name, _cells(each, report)) for each in report.findings)
    noise = ("noise",) if report.is_repeated else ()
    columns = ("n", "difference", "bounds", "margin", "p pass", "p fail", "sees", *noise, "verdict")
    level = (1 - report.rules.alpha) * 100
    caption = (
        "Difference of scores in points, candidate minus baseline, paired by sample. Bounds: "
        f"one-sided, {level:g} % each. PASS: the lower bound is above minus the margin. FAIL: the "
        "upper one is below it, and p fail, corrected by Holm, is below "
        f"{report.rules.alpha:g}. sees: the smallest loss beyond the margin that would have been "
        "found 4 times in 5."
    )
    if report.is_repeated:
        caption += " noise: what the baseline may differ from itself by."
    return Sheet(f"{report.candidate} against {report.baseline}", "", columns, lines, caption)


def print_report(report: GateReport, console: Console) -> None:
    """Print the table, why it is so, and the verdict last."""
    console.print(rich_table(gate_sheet(report), console.width))
    for line in _sentences(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    style = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow"}
    console.print(f"\nGate: {report.verdict.upper()}", style=style[report.verdict])


def gate_markdown(report: GateReport) -> str:
    """The decision for a pull request."""
    sentences = "\n".join(f"- {line}" for line in _sentences(report))
    models = f"`{report.candidate}` against `{report.baseline}`"
    return (
        f"### Gate: {report.verdict.upper()}\n\n{models}\n\n"
        f"{markdown(gate_sheet(report))}\n{sentences}\n"
    )


def gate_json(report: GateReport) -> dict[str, Any]:
    """All numbers; differences, margins and bounds are in [-1, 1]."""
    return {
        "verdict": report.verdict,
        "candidate": report.candidate,
        "baseline": report.baseline,
        **asdict(report.rules),
        "findings": [_finding_json(each) for each in report.findings],
        "breaches": list(report.breaches),
        "notes": list(report.notes),
    }


def junit_xml(report: GateReport) -> str:
    """A test case per finding and per broken limit; inconclusive ones are errors."""
    failed = [each for each in report.findings if each.verdict == "fail"]
    unsure = [each for each in report.findings if each.verdict == "inconclusive"]
    suite = _suite(
        len(report.findings) + len(report.breaches),
        len(failed) + len(report.breaches),
        len(unsure),
    )
    for each in report.findings:
        case = ElementTree.SubElement(suite, "testcase", classname="nan-merge.gate", name=each.name)
        text = f"{each.name}: {points(each.difference.value, 2)} points; {each.reason}"
        if each.verdict != "pass":
            kind = "failure" if each.verdict == "fail" else "error"
            ElementTree.SubElement(case, kind, type=each.verdict, message=text)
        else:
            ElementTree.SubElement(case, "system-out").text = text
    for breach in report.breaches:
        name = f"limits: {breach}"
        case = ElementTree.SubElement(suite, "testcase", classname="nan-merge.gate", name=name)
        ElementTree.SubElement(case, "failure", type="limit", message=breach)
    return _xml_text(suite)


def write_reports(report: GateReport, files: GateFiles, console: Console) -> None:
    """Write the files that are wanted, and say where they are."""
    if files.json is not None:
        write_json(files.json, gate_json(report))
    if files.junit is not None:
        write_text_atomically(files.junit, junit_xml(report))
    if files.markdown is not None:
        write_text_atomically(files.markdown, gate_markdown(report))
    for path in (files.json, files.junit, files.markdown):
        if path is not None:
            console.print(f"Written {path}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def errors_in(files: GateFiles) -> Generator[None]:
    """Write the files that are wanted about a gate that cannot decide, and raise what it raised."""
    try:
        yield
    except NanMergeError as error:
        _write_error(str(error), files)
        raise


def _write_error(message: str, files: GateFiles) -> None:
    if files.json is not None:
        write_json(files.json, {"verdict": "error", "error": message})
    if files.junit is not None:
        suite = _suite(1, 0, 1)
        case = ElementTree.SubElement(suite, "testcase", classname="nan-merge.gate", name="gate")
        ElementTree.SubElement(case, "error", type="error", message=message)
        write_text_atomically(files.junit, _xml_text(suite))
    if files.markdown is not None:
        write_text_atomically(files.markdown, f"### Gate: ERROR\n\n{message}\n")


def _suite(tests: int, failures: int, errors: int) -> ElementTree.Element:
    counts = {"tests": str(tests), "failures": str(failures), "errors": str(errors)}
    return ElementTree.Element("testsuite", {"name": "nan-merge gate", **counts})


def _xml_text(suite: ElementTree.Element) -> str:
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(
        suite, encoding="unicode"
    )


def _sentences(report: GateReport) -> list[str]:
    lines = [f"{each.name}: {each.verdict}: {each.reason}." for each in report.findings]
    lines += [f"limit broken: {breach}." for breach in report.breaches]
    return [*lines, *(f"note: {note}" for note in report.notes)]


def _cells(found: Finding, report: GateReport) -> tuple[Cell, ...]:
    noise = MISSING if found.noise is None else f"{found.noise * 100:.1f}"
    return (
        Cell(f"{found.difference.num_samples:,}"),
        Cell(points(found.difference.value, 2)),
        Cell(f"{points(found.low)} to {points(found.high)}"),
        Cell(f"{found.margin * 100:g}"),
        Cell(p_text(found.p_pass)),
        Cell(p_text(found.p_fail_corrected)),
        Cell(f"{found.detectable * 100:.1f}"),
        *((Cell(noise),) if report.is_repeated else ()),
        Cell(found.verdict.upper()),
    )


def _finding_json(found: Finding) -> dict[str, Any]:
    content = asdict(found) | {"difference": _plain(asdict(found.difference))}
    return _plain(content)


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    return {key: None if value != value else value for key, value in content.items()}
