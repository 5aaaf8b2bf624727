"""The command `nan-merge compare`: reads runs, prints tables, writes files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from evaluators.profiles import ScorerName
from nan_merge.config_messages import did_you_mean
from nan_merge.errors import ConfigError, MissingExtraError
from nan_merge.publish import write_text_atomically
from pipelines.compare import Comparison, compare_runs
from pipelines.compare_view import (
    comparison_json,
    flips_lines,
    sheets_of,
)
from pipelines.compared_models import AnswerReader
from pipelines.comparison_page import write_comparison_page
from pipelines.extras import require
from pipelines.flips import flips_text
from pipelines.output_files import write_json
from pipelines.run_folder import sole_writer
from pipelines.sheet import markdown, rich_table


def compare_command(
    runs: Sequence[Path],
    console: Console,
    *,
    baseline: str | None = None,
    flips: str | None = None,
    limit: int = 10,
    output: Path | None = None,
    as_json: bool = False,
    resamples: int = 10_000,
    seed: int = 0,
    scorer: ScorerName | None = None,
    data: Path | None = None,
    judge: str | None = None,
) -> Comparison:
    """Compare the models of runs with a baseline; print and write what was found.

    Args:
        runs: Folders of finished runs, evaluations or imports.
        console: Where to print.
        baseline: Model to compare with.
        flips: Benchmark whose flipped samples are listed.
        limit: Most flipped samples of each model.
        output: Folder for the comparison's files.
        as_json: Print JSON and no tables.
        resamples: Of each bootstrap.
        seed: Of the bootstraps.
        scorer: Whose verdicts on language models.
        data: The data's folder, if it is not where it was.
        judge: Name of the judge whose readings count.

    Raises:
        NanMergeError: With a message for the user.
    """
    require(["scipy", "statsmodels"])
    found = compare_runs(runs, baseline, AnswerReader(scorer, data, judge), resamples, seed)
    if flips is not None and flips not in found.benchmarks:
        near = did_you_mean(flips, found.benchmarks, ".")
        raise ConfigError(
            f"--flips {flips}: no such benchmark was compared, have "
            f"{', '.join(found.benchmarks)}{near}"
        )
    if output is not None:
        write_comparison(found, output)
    if as_json:
        text = json.dumps(comparison_json(found), indent=2, ensure_ascii=False, allow_nan=False)
        console.file.write(f"{text}\n")
        return found
    for sheet in sheets_of(found):
        console.print(rich_table(sheet, console.width))
    lines = [f"note: {note}" for note in found.notes]
    if flips is not None:
        chosen = [each for each in found.flips if each.benchmark == flips]
        lines += flips_lines(chosen, found, limit)
    elif found.flips:
        lines.append("\nWhich samples flipped: --flips BENCHMARK, or --output DIR for all of them.")
    if output is not None:
        page = output / "comparison.html"
        shown = page if page.is_file() else output / "comparison.json"
        lines.append(f"\nComparison  {shown}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return found


def write_comparison(found: Comparison, folder: Path) -> None:
    """Write ``comparison.json``, ``comparison.md``, ``comparison.html`` and ``flips.jsonl``.

    The page is left out where what it needs is not installed.

    Raises:
        OutputError: If the folder cannot be written.
    """
    with sole_writer(folder):
        write_json(folder / "comparison.json", comparison_json(found))
        sheets = sheets_of(found)
        text = "\n".join(f"### {sheet.title}\n\n{markdown(sheet)}" for sheet in sheets)
        write_text_atomically(folder / "comparison.md", text)
        write_text_atomically(folder / "flips.jsonl", flips_text(found.flips))
        with suppress(MissingExtraError):
            write_comparison_page(found, folder)
