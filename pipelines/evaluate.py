"""Score every model on every benchmark; what was scored before is read, not computed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evaluators.image_classification import (
    ImageBenchmark,
    ImageScoring,
    open_image_tower,
    score_image_tower,
    write_heads,
)
from evaluators.image_sets import load_image_set
from evaluators.predictions import read_key, read_predictions
from evaluators.scores import Score, score_accuracy
from nan_merge.checkpoint import open_checkpoint
from nan_merge.fingerprint import digest_file, digest_text, fingerprint
from nan_merge.tasks import Task
from pipelines.workers import Workers

# Raise it when the evaluation code would give other predictions from the same weights.
PROTOCOL_VERSION = 1


@dataclass(frozen=True)
class Candidate:
    """One model to score.

    Attributes:
        name: Row of the table, or the name of a fine-tuned model.
        folder: Its checkpoint.
        predictions: Folder of its predictions.
    """

    name: str
    folder: Path
    predictions: Path


def evaluate_candidates(
    candidates: Sequence[Candidate],
    benchmarks: Sequence[ImageBenchmark],
    batch_size: int,
    workers: Workers,
) -> dict[tuple[str, str], Score]:
    """Scores by (candidate's name, benchmark's name)."""
    scores: dict[tuple[str, str], Score] = {}
    todo: list[tuple[Candidate, list[ImageScoring]]] = []
    heads = {path: digest_file(Path(path)) for path in {b.heads_path for b in benchmarks}}
    for candidate in candidates:
        weights = fingerprint(open_checkpoint(str(candidate.folder)))
        missing: list[ImageScoring] = []
        for benchmark in benchmarks:
            key = _predictions_key(weights, benchmark, heads[benchmark.heads_path])
            path = candidate.predictions / f"{benchmark.name}.jsonl"
            if read_key(path) == key:
                predictions = read_predictions(path)
                scores[candidate.name, benchmark.name] = score_accuracy(benchmark.name, predictions)
            else:
                missing.append(ImageScoring(benchmark, str(path), key, batch_size))
        if missing:
            todo.append((candidate, missing))
    scores.update(_score(todo, workers))
    return scores


def _score(
    todo: Sequence[tuple[Candidate, list[ImageScoring]]], workers: Workers
) -> dict[tuple[str, str], Score]:
    if not todo:
        return {}
    from cluster.actors import ModelJob

    scores: dict[tuple[str, str], Score] = {}
    jobs = [
        ModelJob(
            candidate.name, open_image_tower, (str(candidate.folder),), score_image_tower, missing
        )
        for candidate, missing in todo
    ]

    def keep(job: ModelJob, item: ImageScoring, score: Score) -> None:
        scores[job.label, item.benchmark.name] = score

    workers.serve_models(f"Evaluating {len(jobs)} models", jobs, keep)
    return scores


def _predictions_key(weights: str, benchmark: ImageBenchmark, heads: str) -> str:
    content: dict[str, Any] = {
        "protocol": PROTOCOL_VERSION,
        "weights": weights,
        "data": benchmark.digest,
        "heads": heads,
        "torch": version("torch"),
        "open_clip": version("open_clip_torch"),
    }
    return digest_text(json.dumps(content, sort_keys=True))


def image_benchmarks(
    clip: Path, test_sets: Mapping[str, Path], names: Sequence[str], workers: Workers
) -> list[ImageBenchmark]:
    """Benchmarks over prepared image sets, with heads made once by a CLIP's text tower.

    Args:
        clip: Folder of the whole pretrained CLIP.
        test_sets: Name -> ``.npz`` file.
        names: The benchmarks wanted, in the order of the table's columns.
        workers: Where the heads are computed.
    """
    digests = {name: load_image_set(test_sets[name]).digest() for name in names}
    chosen = digest_text(json.dumps(digests))[:16]
    heads = clip.parent / f"heads-{chosen}.safetensors"
    if not heads.is_file():
        paths = {name: str(test_sets[name]) for name in names}
        task = Task("text tower", write_heads, (str(clip), paths, str(heads)), 1)
        workers.run_tasks("Zero-shot heads", [task])
    return [ImageBenchmark(name, str(test_sets[name]), digests[name], str(heads)) for name in names]
