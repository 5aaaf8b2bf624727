"""Score every model on every benchmark; what was scored before is read, not computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from evaluators.backends.clip_checkpoints import CLIP_CONFIG, CLIP_WEIGHTS, TOWER_CONFIG
from evaluators.clip_sets.prepare import clip_sample_cluster
from evaluators.image_classification import (
    HeadSpec,
    ImageBenchmark,
    ImageShard,
    classify_shard,
    head_digest,
    image_shards,
    open_image_towers,
    write_heads,
)
from evaluators.image_sets import load_image_set
from evaluators.prediction_journal import PredictionJournal
from evaluators.predictions import Prediction, read_key, read_predictions
from evaluators.quickstart_images import QUICKSTART_TASKS, sample_cluster
from evaluators.scores import Score, score_accuracy
from nan_merge.checkpoint import open_checkpoint
from nan_merge.errors import CheckpointError
from nan_merge.fingerprint import digest_file, digest_text, fingerprint
from nan_merge.tasks import Task
from pipelines.earlier_answers import take_over
from pipelines.image_records import ImageRecordInfo, write_image_info
from pipelines.split import Part, everything
from pipelines.workers import Workers

_head_digest = cache(head_digest)  # a run asks for the same ones model by model

# Raise it when the evaluation code would give other heads or predictions from the same weights.
PROTOCOL_VERSION = 3


@dataclass(frozen=True)
class Candidate:
    """One model to score.

    Attributes:
        name: Row of the table, or the name of a fine-tuned model.
        folder: Its checkpoint.
        predictions: Folder of its predictions.
        identity: What `tower_identity` (or, of a language model, `model_identity`) said of its
            checkpoint, if that may be gone by now.
        earlier: Folders of its predictions in the same run with other seeds.
    """

    name: str
    folder: Path
    predictions: Path
    identity: Mapping[str, str] | None = None
    earlier: tuple[Path, ...] = ()


def evaluate_candidates(
    candidates: Sequence[Candidate],
    benchmarks: Sequence[ImageBenchmark],
    batch_size: int,
    workers: Workers,
    part: Part = everything,
    dtype: str = "float32",
    models_at_once: int = 1,
) -> dict[tuple[str, str], Score]:
    """Scores on a part of the samples, by (candidate's name, benchmark's name).

    All samples are answered, but only what no earlier run answered is asked for, shard by shard.
    ``models_at_once`` share one reading of the images, and the memory of one actor.
    """
    heads = _heads_digests(benchmarks)
    sample_ids_of = cache(_read_sample_ids)
    work: list[_Work] = []
    for candidate in candidates:
        model = _model_key(candidate, batch_size, dtype)
        missing: list[_Missing] = []
        for benchmark in benchmarks:
            key = _predictions_key(model, benchmark, heads[benchmark.heads_path])
            path = predictions_path(candidate, benchmark.name)
            write_image_info(path, _info(key, candidate, benchmark, batch_size, dtype))
            take_over(path, key, (folder / path.name for folder in candidate.earlier))
            if read_key(path) == key:
                continue
            journal = PredictionJournal(path, key, sample_ids_of(benchmark.data_path), Prediction)
            if shards := _unanswered(journal, benchmark, batch_size):
                missing.append(_Missing(journal, shards))
            else:
                journal.finish()  # the earlier run was killed at this point
        if missing:
            work.append((candidate, missing))
    _answer(work, workers, dtype, models_at_once)
    return {
        (candidate.name, benchmark.name): score_accuracy(
            benchmark.name, read_part(predictions_path(candidate, benchmark.name), part)
        )
        for candidate in candidates
        for benchmark in benchmarks
    }


def read_part(path: Path, part: Part) -> list[Prediction]:
    """The predictions on a part of the samples; see `read_predictions`."""
    return [each for each in read_predictions(path, Prediction) if part(each.cluster_id)]


def tower_identity(folder: Path) -> dict[str, str]:
    """Digests of all that an image tower's checkpoint brings.

    Raises:
        CheckpointError: If there is no checkpoint.
    """
    return {
        "weights": fingerprint(open_checkpoint(str(folder))),
        "config": _digest_if_there(folder / TOWER_CONFIG),
    }


def is_answered(
    candidate: Candidate,
    benchmarks: Sequence[ImageBenchmark],
    batch_size: int,
    dtype: str = "float32",
) -> bool:
    """Whether all of a candidate's predictions are there."""
    heads, model = _heads_digests(benchmarks), _model_key(candidate, batch_size, dtype)
    return all(
        read_key(predictions_path(candidate, each.name))
        == _predictions_key(model, each, heads[each.heads_path])
        for each in benchmarks
    )


def _heads_digests(benchmarks: Sequence[ImageBenchmark]) -> dict[str, str]:
    return {path: digest_file(Path(path)) for path in {b.heads_path for b in benchmarks}}


def _model_key(candidate: Candidate, batch_size: int, dtype: str) -> dict[str, Any]:
    identity = candidate.identity or tower_identity(candidate.folder)
    return {**identity, "batch_size": batch_size, "dtype": dtype}  # sums depend on them


@dataclass(frozen=True)
class _Missing:
    """What a candidate has still to answer on one benchmark."""

    journal: PredictionJournal[Prediction]
    shards: list[ImageShard]


_Work = tuple[Candidate, list[_Missing]]


def _info(
    key: str, candidate: Candidate, benchmark: ImageBenchmark, batch_size: int, dtype: str
) -> ImageRecordInfo:
    return ImageRecordInfo(
        key=key,
        model=candidate.name,
        benchmark=benchmark.name,
        data=benchmark.digest,
        heads=_head_digest(benchmark.heads_path, benchmark.name),
        engine={**_code(), "batch_size": batch_size, "dtype": dtype},
    )


def _read_sample_ids(data_path: str) -> tuple[str, ...]:
    return load_image_set(Path(data_path)).sample_ids


def _unanswered(
    journal: PredictionJournal[Prediction], benchmark: ImageBenchmark, batch_size: int
) -> list[ImageShard]:
    shards = image_shards(benchmark, len(journal.sample_ids), batch_size)
    return [shards[number] for number in journal.missing([shard.places for shard in shards])]


def predictions_path(candidate: Candidate, benchmark: str) -> Path:
    """Where a candidate's predictions on a benchmark are kept."""
    return candidate.predictions / f"{benchmark}.jsonl"


def _answer(work: Sequence[_Work], workers: Workers, dtype: str, models_at_once: int) -> None:
    if not work:
        return
    from cluster.actors import ModelJob

    journals: dict[tuple[str, str], PredictionJournal[Prediction]] = {}
    names: dict[str, list[str]] = {}
    jobs: list[ModelJob] = []
    for group in _groups(work, models_at_once):
        candidates = [candidate for candidate, _ in group]
        for candidate, missing in group:
            for each in missing:
                journals[candidate.name, each.shards[0].benchmark.name] = each.journal
        label = ", ".join(candidate.name for candidate in candidates)
        names[label] = [candidate.name for candidate in candidates]
        jobs.append(
            ModelJob(
                label=label,
                load=open_image_towers,
                arguments=([str(candidate.folder) for candidate in candidates], dtype),
                work=classify_shard,
                items=[shard for each in group[0][1] for shard in each.shards],
                cost_of=lambda shard: shard.num_samples,
            )
        )

    def keep(job: ModelJob, shard: ImageShard, answers: list[list[Prediction]]) -> None:
        for name, predictions in zip(names[job.label], answers, strict=True):
            journals[name, shard.benchmark.name].keep(predictions)

    stage = f"Evaluating {len(work)} models"
    workers.serve_models(stage, jobs, keep, samples_of=lambda shard: shard.num_samples)


def _groups(work: Sequence[_Work], size: int) -> list[list[_Work]]:
    """Candidates that have the same shards to answer, at most so many together."""
    alike: dict[tuple[str, ...], list[_Work]] = {}
    for candidate, missing in work:
        shards = tuple(str(shard) for each in missing for shard in each.shards)
        alike.setdefault(shards, []).append((candidate, missing))
    return [
        group[start : start + size]
        for group in alike.values()
        for start in range(0, len(group), size)
    ]


def _predictions_key(model: Mapping[str, Any], benchmark: ImageBenchmark, heads: str) -> str:
    return _key({**model, "data": benchmark.digest, "heads": heads})


def _key(content: Mapping[str, Any]) -> str:
    """Digest of what something was made from, and of the code that made it."""
    return digest_text(json.dumps({**content, **_code()}, sort_keys=True))


def _code() -> dict[str, Any]:
    return {
        "protocol": PROTOCOL_VERSION,
        "torch": version("torch"),
        "open_clip": version("open_clip_torch"),
    }


def _digest_if_there(path: Path) -> str:
    return digest_file(path) if path.is_file() else ""


def _digest_clip(clip: Path) -> dict[str, str]:
    """Digests of a whole CLIP's files, which may be too large to read at once."""
    digests: dict[str, str] = {}
    for path in (clip / CLIP_CONFIG, clip / CLIP_WEIGHTS):
        try:
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(
                f"Cannot read {path}: {error.strerror}. `clip` must name the folder of a whole "
                "pretrained CLIP in open_clip's local layout."
            ) from error
    return digests


def image_benchmarks(
    clip: Path,
    test_sets: Mapping[str, Path],
    names: Sequence[str],
    kept: Path,
    workers: Workers,
) -> list[ImageBenchmark]:
    """Benchmarks over prepared image sets, with heads made once by a CLIP's text tower.

    Args:
        clip: Folder of the whole pretrained CLIP.
        test_sets: Name -> ``.npz`` file, or folder of prepared images.
        names: The benchmarks wanted, in the order of the table's columns.
        kept: Folder where heads are kept, each under a key of all that shaped it.
        workers: Where the heads are computed.

    Raises:
        CheckpointError: If the CLIP cannot be read.
    """
    sets = {name: load_image_set(test_sets[name]) for name in names}
    made_with = _digest_clip(clip)
    specs: dict[str, HeadSpec] = {}
    for name, image_set in sets.items():
        prompts = {"class_names": image_set.class_names, "templates": image_set.templates}
        key = _key({"clip": made_with, **prompts})
        output = str(kept / f"{name}-{key[:16]}.safetensors")
        specs[name] = HeadSpec(name, image_set.class_names, image_set.templates, output)
    missing = [spec for spec in specs.values() if not Path(spec.output).is_file()]
    if missing:
        task = Task("text tower", write_heads, (str(clip), missing), 1)
        workers.run_tasks("Zero-shot heads", [task])
    return [
        ImageBenchmark(
            name,
            str(test_sets[name]),
            sets[name].digest(),
            specs[name].output,
            sample_cluster if name in QUICKSTART_TASKS else clip_sample_cluster,
        )
        for name in names
    ]
