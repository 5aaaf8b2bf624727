"""Read work folders of OpenCompass: predictions/, results/ and summary/.

Layout as version 0.5 writes it (``opencompass/tasks/openicl_infer.py``, ``openicl_eval.py``). For
verdicts on single samples it must have run with ``--dump-eval-details`` (its default).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluators.answers import Answer
from nan_merge.errors import DataError
from pipelines.imported import ImportedBenchmark, ImportedQuestion, clean, prompt_digest

# Prefix of a data set's name -> the benchmark whose subset it is.
PREFIXES = {
    "lukaemon_mmlu_": "mmlu",
    "ceval-test-": "ceval-test",
    "ceval-": "ceval",
    "bbh-": "bbh",
}
# What its evaluators call a verdict on a sample, and the share of right ones in percent.
VERDICTS, SCORES = ("correct", "is_correct"), ("accuracy", "score")
ROUNDING = 0.01
NO_ANSWER = (None, "", [], "NULL")  # what its extractions give if they find none
Pair = tuple[ImportedQuestion, Answer]


def is_opencompass_folder(folder: Path) -> bool:
    """Whether OpenCompass wrote there."""
    return any(path.is_dir() for path in folder.rglob("predictions"))


def read_opencompass(folder: Path) -> list[ImportedBenchmark]:
    """All benchmarks of all models of the latest run in a folder.

    Raises:
        DataError: If files are missing or damaged, or hold no verdicts.
    """
    work = max(path.parent for path in folder.rglob("predictions") if path.is_dir())
    found: dict[tuple[str, str], list[Pair]] = {}
    for model in sorted(path for path in (work / "predictions").iterdir() if path.is_dir()):
        for dataset, rows in _predictions(model).items():
            verdicts = _read(work / "results" / model.name / f"{dataset}.json")
            benchmark, subset = _place_of(dataset)
            pairs = _pairs(rows, verdicts, subset, dataset)
            _refuse_another_score(pairs, verdicts, dataset)
            found.setdefault((model.name, benchmark), []).extend(pairs)
    if not found:
        raise DataError(f"{work / 'predictions'} holds no predictions.")
    return [
        ImportedBenchmark(
            harness="OpenCompass",
            model=model,
            benchmark=benchmark,
            profile=work.name,
            questions=[question for question, _ in pairs],
            answers=[answer for _, answer in pairs],
        )
        for (model, benchmark), pairs in found.items()
    ]


def _predictions(model: Path) -> dict[str, list[dict[str, Any]]]:
    """Data set -> its rows; a data set that was cut into NAME_0.json, NAME_1.json is joined."""
    names = {path.stem for path in model.glob("*.json") if not path.name.startswith("tmp_")}
    datasets: dict[str, list[dict[str, Any]]] = {}
    for name in sorted(names):
        stem, _, number = name.rpartition("_")
        is_part = number.isdigit() and f"{stem}_0" in names
        dataset = stem if is_part else name
        if dataset in datasets:
            continue
        parts = [model / f"{name}.json"]
        if is_part:
            parts = [model / f"{stem}_{part}.json" for part in range(_num_parts(stem, names))]
        datasets[dataset] = [row for path in parts for row in _in_order(_read(path), path)]
    return datasets


def _num_parts(stem: str, names: set[str]) -> int:
    number = 0
    while f"{stem}_{number}" in names:
        number += 1
    return number


def _in_order(content: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    try:
        return [content[str(number)] for number in range(len(content))]
    except KeyError as error:
        raise DataError(
            f"{path}: prediction {error} is missing. Was the run finished? Run OpenCompass again."
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing: OpenCompass did not finish it. Run it again with --reuse."
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is damaged: it holds no table.")
    return content


def _place_of(dataset: str) -> tuple[str, str]:
    for prefix, benchmark in PREFIXES.items():
        if dataset.startswith(prefix):
            return benchmark, dataset.removeprefix(prefix)
    return dataset, dataset


def _pairs(
    rows: list[dict[str, Any]], verdicts: Mapping[str, Any], subset: str, dataset: str
) -> list[Pair]:
    details = verdicts.get("details")
    pairs: list[Pair] = []
    for number, row in enumerate(rows):
        labels = [key.removeprefix("label: ") for key in row if key.startswith("label: ")]
        sample_id = f"{subset}/{number}"
        if labels:
            pairs.append(_choice_pair(row, labels, sample_id, subset))
            continue
        detail = _detail(details, number, dataset)
        prompt = _prompt(row.get("origin_prompt", ""))
        predicted = _first_of(detail, ("pred", "predictions"))
        extracted = None if predicted in NO_ANSWER else clean(predicted)
        references = _first_of(detail, ("answer", "refr", "references"))
        gold = clean(row.get("gold", "" if references is None else references))
        is_correct = _verdict(detail, predicted, references, f"{dataset}: sample {number}")
        question = ImportedQuestion(sample_id, subset, prompt, (), gold, extracted, is_correct)
        completion = clean(row.get("prediction", ""))
        pairs.append((question, Answer(sample_id, prompt_digest(prompt), completion, "unknown")))
    return pairs


def _choice_pair(row: Mapping[str, Any], labels: list[str], sample_id: str, subset: str) -> Pair:
    """A row of perplexities: its prediction is the label of the least."""
    losses = [float(row[f"label: {label}"]["PPL"]) for label in labels]
    prompt = _prompt(row[f"label: {labels[0]}"].get("prompt", ""))
    predicted, gold = clean(row["prediction"]), clean(row["gold"])
    is_known = not any(map(math.isnan, losses))
    question = ImportedQuestion(
        sample_id,
        subset,
        prompt,
        tuple(labels),
        gold,
        predicted if is_known else None,
        is_known and predicted == gold,
    )
    # Mean losses over whole prompts: as log-probabilities they compare, and mean nothing more.
    values = tuple(None if math.isnan(loss) else -loss for loss in losses)
    return question, Answer(sample_id, prompt_digest(prompt), "", "choice", values)


def _detail(details: Any, number: int, dataset: str) -> Mapping[str, Any]:
    found: Any = None
    if isinstance(details, list) and number < len(details):
        found = details[number]
    elif isinstance(details, dict):
        found = details.get(str(number))
    if not isinstance(found, dict):
        raise DataError(
            f"{dataset}: its results have no verdict on sample {number}. Run OpenCompass' "
            "evaluation again with --dump-eval-details."
        )
    return found


def _first_of(detail: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value under the first of these names that there is, or None.

    Since version 0.5 a value is a list with an element for every time that the sample was asked
    (``openicl/icl_evaluator/icl_base_evaluator.py``, ``evaluate``).
    """
    found = next((detail[name] for name in names if name in detail), None)
    return found[0] if isinstance(found, list) and len(found) == 1 else found


def _verdict(detail: Mapping[str, Any], predicted: Any, references: Any, place: str) -> bool:
    """Whether OpenCompass took an answer for right; evaluators name it differently, or not at all.

    Those that do not name it are plain accuracy: prediction and reference are equal.
    """
    named = _first_of(detail, VERDICTS)
    if isinstance(named, list):
        raise DataError(
            f"{place} was asked {len(named)} times. Import a run that asked every sample once."
        )
    if named is not None:
        return bool(named)
    if predicted is None or references is None:
        raise DataError(
            f"{place} has no verdict. Run OpenCompass' evaluation again with --dump-eval-details."
        )
    return str(predicted) == str(references)


def _refuse_another_score(pairs: list[Pair], verdicts: Mapping[str, Any], dataset: str) -> None:
    """Raise `DataError` if the verdicts on samples do not make OpenCompass' own score."""
    own = next((verdicts[name] for name in SCORES if name in verdicts), None)
    if (
        not isinstance(own, int | float)
        or not pairs
        or any(None in a.log_probabilities for _, a in pairs)
    ):
        return
    share = 100 * sum(question.is_correct for question, _ in pairs) / len(pairs)
    if abs(share - own) > ROUNDING:
        raise DataError(
            f"{dataset}: OpenCompass' own score is {own:.2f}, but by its verdicts on the samples "
            f"it is {share:.2f}. Its metric is none of right and wrong answers, or the files are "
            "of different runs; such results cannot be imported."
        )


def _prompt(content: Any) -> str:
    """A prompt as text; of a chat, its turns one after the other."""
    if isinstance(content, list):
        turns = [turn for turn in content if isinstance(turn, dict)]
        return "\n".join(clean(f"{turn.get('role')}: {turn.get('prompt')}") for turn in turns)
    return clean(content)
