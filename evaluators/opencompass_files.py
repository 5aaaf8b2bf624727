"""What OpenCompass writes: whether it is whole, what it says of errors, and its summary."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from evaluators.opencompass_config import OpenCompassBenchmark
from nan_merge.errors import EvaluationError

RUN = "run"
"""Folder of its files in a benchmark's folder."""
_MOST_LINES = 12
_ERROR = re.compile(r"^.* - OpenCompass - ERROR - \S+ - \S+ - \d+ - (?P<message>.*)$")


def unfinished(asked: OpenCompassBenchmark) -> list[str]:
    """Data sets that lack predictions on all samples, or results."""
    return [
        name
        for name, number in asked.datasets.items()
        if _num_samples(_file(asked, "predictions", name)) != number
        or _read(_file(asked, "results", name)) is None
    ]


def is_finished(asked: OpenCompassBenchmark) -> bool:
    """Whether all is there, a summary with a score for every data set included."""
    return not unfinished(asked) and asked.datasets.keys() <= _summary(asked).keys()


def read_summary(asked: OpenCompassBenchmark) -> dict[str, float]:
    """Scores in percent of OpenCompass' last summary, by data set and group of data sets.

    Raises:
        EvaluationError: If there is no summary.
    """
    if not (scores := _summary(asked)):
        folder = Path(asked.work) / RUN / "summary"
        raise EvaluationError(f"OpenCompass wrote no summary to {folder}. Run it again.")
    return scores


def _summary(asked: OpenCompassBenchmark) -> dict[str, float]:
    found = sorted((Path(asked.work) / RUN / "summary").glob("summary_*.csv"))
    text = found[-1].read_text(encoding="utf-8") if found else ""
    scores: dict[str, float] = {}
    for line in text.splitlines()[1:]:
        name, *_, value = line.split(",")
        with suppress(ValueError):  # a dash, where it has no score
            scores.setdefault(name, float(value))
    return scores


def remove_damaged(asked: OpenCompassBenchmark) -> None:
    """Remove what a killed run left half written: OpenCompass takes what is there for whole."""
    for name, number in asked.datasets.items():
        predictions, results = (_file(asked, kind, name) for kind in ("predictions", "results"))
        if _num_samples(predictions) != number:
            predictions.unlink(missing_ok=True)
            results.unlink(missing_ok=True)
        elif _read(results) is None:
            results.unlink(missing_ok=True)


def refuse_unfinished(asked: OpenCompassBenchmark, log: Path, start: int) -> None:
    """Raise `EvaluationError` if data sets are unfinished, with the words of the task that failed.

    Args:
        asked: The benchmark.
        log: What OpenCompass itself printed.
        start: Bytes at its beginning that are of an earlier run.
    """
    if not (names := unfinished(asked)):
        return
    told = [
        path
        for path in task_logs(Path(asked.work))
        if opencompass_last_words(path, 0, errors_only=True)
    ]
    place, words = (
        (told[0], opencompass_last_words(told[0], 0))
        if told
        else (log, opencompass_last_words(log, start))
    )
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    raise EvaluationError(
        f"OpenCompass did not finish {len(names)} of {len(asked.datasets)} data sets "
        f"({', '.join(names[:3])}{more}). {place} says why:\n{words}\nWhat is finished is kept: "
        "the same command goes on where it stood."
    )


def opencompass_last_words(log: Path, start: int, *, errors_only: bool = False) -> str:
    """What OpenCompass printed at the end: its errors, once each, and the last line."""
    printed = log.read_bytes()[start:] if log.is_file() else b""
    lines = [line.rstrip() for line in printed.decode(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    errors = [match["message"] for line in lines if (match := _ERROR.match(line))]
    if lines and re.match(r"^[\w.]*(Error|Exception|Interrupt)\b", lines[-1]):
        errors.append(lines[-1])
    if errors_only or errors:
        return "\n".join(list(dict.fromkeys(errors))[-_MOST_LINES:])
    return "\n".join(lines[-_MOST_LINES:]) or "It said nothing."


def task_logs(work: Path) -> list[Path]:
    """What its tasks printed, each to a file of its own; the latest last."""
    found = (work / RUN / "logs").rglob("*.out")
    return sorted(found, key=lambda path: path.stat().st_mtime)


def _file(asked: OpenCompassBenchmark, kind: str, dataset: str) -> Path:
    return Path(asked.work) / RUN / kind / asked.model / f"{dataset}.json"


def _num_samples(path: Path) -> int:
    content = _read(path)
    return -1 if content is None else len(content)


def _read(path: Path) -> Mapping[str, Any] | None:
    """The object in a JSON file, or None if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
