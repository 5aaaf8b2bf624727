"""Read result folders of lm-evaluation-harness: results_*.json and samples_*.jsonl.

Layout as ``lm_eval/loggers/evaluation_tracker.py`` of version 0.4 writes it; samples are there if
it ran with ``--log_samples``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluators.answers import Answer
from evaluators.benchmarks.files import read_text
from nan_merge.errors import DataError
from pipelines.imported import (
    ImportedBenchmark,
    ImportedQuestion,
    clean,
    prompt_digest,
    refuse_repeated_ids,
)

METRICS = ("exact_match", "acc")
"""Metrics that say right or wrong of a sample; the first that it has is taken."""


def is_lm_eval_folder(folder: Path) -> bool:
    """Whether lm-evaluation-harness wrote there."""
    return any(folder.rglob("results_*.json"))


def read_lm_eval(folder: Path) -> list[ImportedBenchmark]:
    """All benchmarks of all models, one for each filter; of a task that was repeated, the latest.

    The harness makes a folder for each model, and results in it for each time that it runs.

    Raises:
        DataError: If files are missing or damaged, or a metric says more than right or wrong.
    """
    benchmarks: list[ImportedBenchmark] = []
    seen: set[tuple[Path, str]] = set()
    paths = sorted(folder.rglob("results_*.json"), key=lambda each: each.name, reverse=True)
    for path in paths:
        results = _read_results(path)
        tasks = sorted(results.get("configs") or results["results"])
        new = [task for task in tasks if (path.parent, task) not in seen]
        seen.update((path.parent, task) for task in new)
        benchmarks += _read_run(path, results, new)
    return sorted(benchmarks, key=lambda each: each.model)


def _read_run(
    path: Path, results: Mapping[str, Any], tasks: Sequence[str]
) -> list[ImportedBenchmark]:
    """Benchmarks of some tasks of one results file."""
    stamp = path.stem.removeprefix("results_")
    found: dict[tuple[str, str], list[tuple[ImportedQuestion, Answer]]] = {}
    for task in tasks:
        samples = path.parent / f"samples_{task}_{stamp}.jsonl"
        if not samples.is_file():
            raise DataError(
                f"{samples} is missing: what the model answered to {task} was not written down. "
                "Run lm_eval again with --log_samples."
            )
        benchmark, subset = _place_of(task, results)
        for row_place, row in _rows(samples):
            pair = _read_row(row, subset, row_place)
            found.setdefault((benchmark, str(row.get("filter", "none"))), []).append(pair)
    harness = f"lm-evaluation-harness {results.get('lm_eval_version', '')}".strip()
    benchmarks: list[ImportedBenchmark] = []
    for (benchmark, profile), pairs in found.items():
        refuse_repeated_ids((question for question, _ in pairs), str(path.parent))
        benchmarks.append(
            ImportedBenchmark(
                harness,
                _model_name(results, path),
                benchmark,
                profile,
                [question for question, _ in pairs],
                [answer for _, answer in pairs],
            )
        )
    return benchmarks


def _read_results(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(content["results"], dict)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise DataError(
            f"{path} is no results file of lm-evaluation-harness ({error!r})."
        ) from error
    return content


def _rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: expected an object")
        yield f"{path}:{number}", row


def _model_name(results: Mapping[str, Any], path: Path) -> str:
    config = results.get("config")
    named = config.get("model") if isinstance(config, dict) else None
    name = results.get("model_name") or named or path.parent.name
    return clean(name).rstrip("/").rpartition("/")[2] or path.parent.name


def _place_of(task: str, results: Mapping[str, Any]) -> tuple[str, str]:
    """Benchmark and subset of a task: of a group, its name and what the task's name adds to it."""
    groups: Mapping[str, Sequence[str]] = results.get("group_subtasks") or {}
    for group, members in groups.items():
        if not members or any(group in others for others in groups.values()):
            continue
        if task in _leaves(group, groups):
            short = task.removeprefix(f"{group}_")
            return group, short
    return task, task


def _leaves(group: str, groups: Mapping[str, Sequence[str]]) -> set[str]:
    members = groups.get(group) or []
    if not members:
        return {group}
    return {leaf for member in members for leaf in _leaves(member, groups)}


def _read_row(row: Mapping[str, Any], subset: str, place: str) -> tuple[ImportedQuestion, Answer]:
    try:
        sample_id = f"{subset}/{row['doc_id']}"
        arguments = _arguments(row["arguments"])
        is_correct = _verdict(row, place)
        prompt = clean(arguments[0][0])
        choices = tuple(clean(each[1]) for each in arguments if isinstance(each[1], str))
        if choices:
            return _choice_row(row, sample_id, subset, prompt, choices, is_correct)
        completion = clean(row["resps"][0][0])
        extracted = clean(row["filtered_resps"][0])
        gold = clean(row["target"])
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"{place}: is no sample of lm-evaluation-harness ({error!r}).") from error
    found = None if extracted in ("[invalid]", "") else extracted
    question = ImportedQuestion(sample_id, subset, prompt, (), gold, found, is_correct)
    return question, Answer(sample_id, prompt_digest(prompt), completion, "unknown")


def _choice_row(
    row: Mapping[str, Any],
    sample_id: str,
    subset: str,
    prompt: str,
    choices: tuple[str, ...],
    is_correct: bool,
) -> tuple[ImportedQuestion, Answer]:
    found = [float(each[0][0]) for each in row["resps"]][: len(choices)]
    labels = tuple(choice.strip() for choice in choices)
    is_known = all(value == value for value in found)
    extracted = labels[found.index(max(found))] if is_known else None
    target = row["target"]
    is_place = re.fullmatch(r"\d+", str(target)) and int(target) < len(labels)
    gold = labels[int(target)] if is_place else clean(target).strip()
    question = ImportedQuestion(sample_id, subset, prompt, labels, gold, extracted, is_correct)
    values = tuple(value if value == value else None for value in found)
    return question, Answer(sample_id, prompt_digest(prompt), "", "choice", values)


def _arguments(content: Any) -> list[list[Any]]:
    """Of each request, its arguments; as a list, or as `gen_args_0: {arg_0: ..., arg_1: ...}`."""
    rows = list(content.values()) if isinstance(content, dict) else list(content)
    return [list(row.values()) if isinstance(row, dict) else list(row) for row in rows]


def _verdict(row: Mapping[str, Any], place: str) -> bool:
    for metric in METRICS:
        if metric in row:
            if row[metric] not in (0, 1, True, False):
                raise DataError(
                    f"{place}: {metric} is {row[metric]!r}, but comparisons need right or wrong."
                )
            return bool(row[metric])
    raise DataError(
        f"{place}: has none of the metrics {', '.join(METRICS)}, but {row.get('metrics')}."
    )
