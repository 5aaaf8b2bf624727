"""Write finished runs, evaluations and imports with invented answers, to compare and gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluators.answers import Answer, FinishReason
from evaluators.predictions import Prediction, write_predictions
from pipelines.image_records import ImageRecordInfo, write_image_info
from pipelines.imported import ImportedBenchmark, ImportedQuestion, prompt_digest, write_imported
from pipelines.output_files import write_json
from pipelines.results import ResultRow, RowKind, RunResults, write_results

Answers = Mapping[str, str]  # benchmark -> "1" for right and "0" for wrong, sample by sample


def write_image_run(
    folder: Path,
    models: Mapping[str, Answers],
    *,
    kinds: Mapping[str, RowKind] | None = None,
    cluster_size: int = 1,
    data: str = "data",
    heads: str = "heads",
    torch: str = "2.13",
) -> Path:
    """A run over image towers as `nan-merge run` leaves it; models are merges unless said."""
    rows: list[ResultRow] = []
    files: dict[str, dict[str, str]] = {}
    for model, answers in models.items():
        kind = (kinds or {}).get(model, "merged")
        for name, right in answers.items():
            path = folder / "predictions" / model / f"{name}.jsonl"
            predictions = [
                Prediction(f"{name}/{i:05}", f"{name}-{i // cluster_size}", "1", answer, -0.5)
                for i, answer in enumerate(right)
            ]
            write_image_info(
                path, ImageRecordInfo("key", model, name, data, heads, {"torch": torch})
            )
            write_predictions(path, "key", predictions)
            files.setdefault(model, {})[name] = path.relative_to(folder).as_posix()
            value = right.count("1") / len(right)
            method = "ties" if kind == "merged" else ""
            rows.append(ResultRow(model, kind, method, "", name, "top1", value, 0.0, len(right)))
    results = RunResults(name=folder.name, seed=0, rows=tuple(rows), merges=(), predictions=files)
    write_results(results, folder)
    return folder


def write_import(
    folder: Path,
    model: str,
    answers: Answers,
    *,
    harness: str = "lm-evaluation-harness 0.4.9",
    profile: str = "none",
    abstained: Sequence[int] = (),
    truncated: Sequence[int] = (),
    unknown_ends: Sequence[int] = (),
    prompt: str = "What is {i}?",
) -> Path:
    """Imported results of one model, as `nan-merge import` leaves them."""
    keys: list[dict[str, str]] = []
    for name, right in answers.items():
        questions: list[ImportedQuestion] = []
        found: list[Answer] = []
        for i, verdict in enumerate(right):
            text, sample_id = prompt.format(i=i), f"part{i % 2}/{i}"
            extracted = None if i in abstained else "A" if verdict == "1" else "B"
            questions.append(
                ImportedQuestion(
                    sample_id, f"part{i % 2}", text, (), "A", extracted, verdict == "1"
                )
            )
            reason: FinishReason = "length" if i in truncated else "stop"
            reason = "unknown" if i in unknown_ends else reason
            found.append(Answer(sample_id, prompt_digest(text), extracted or "", reason))
        benchmark = ImportedBenchmark(harness, model, name, profile, questions, found)
        path = write_imported(benchmark, folder / "predictions" / model)
        keys.append({"key": _key(path)})
    write_json(folder / "scores.json", keys)
    return folder


def _key(path: Path) -> str:
    from pipelines.language_records import find_records

    return next(each.info.key for each in find_records(path.parent) if each.path == path)
