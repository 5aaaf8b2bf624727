"""Fetch benchmarks' data from the Hugging Face hub and write it in the upstream layouts.

Needs the library `datasets`, and a connection to the hub. Licences are the data's own; nothing is
shipped with this package.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from evaluators.benchmarks.bbh_tasks import TASKS
from evaluators.benchmarks.ceval_subjects import SUBJECTS as CEVAL_SUBJECTS
from evaluators.benchmarks.mmlu_subjects import SUBJECTS as MMLU_SUBJECTS
from nan_merge.errors import ConfigError, DataError, MissingExtraError
from nan_merge.publish import publish_folder

Rows = Iterable[Mapping[str, Any]]
LoadRows = Callable[[str, str, str], Rows]
"""Repository, configuration and split -> rows."""
LoadText = Callable[[str], str]
"""URL -> text."""

BBH_PROMPTS = "https://raw.githubusercontent.com/suzgunmirac/BIG-Bench-Hard/main/cot-prompts"
_SECONDS = 60


def fetch_benchmark(
    benchmark: str,
    folder: Path,
    load_rows: LoadRows | None = None,
    load_text: LoadText | None = None,
) -> Path:
    """Fetch one benchmark into ``folder/BENCHMARK``; it appears when it is whole.

    Args:
        benchmark: Its name.
        folder: Where folders of benchmarks lie.
        load_rows: Instead of the hub.
        load_text: Instead of the network.

    Raises:
        ConfigError: If the benchmark is unknown.
        DataError: If the hub cannot be reached or the data has another form than it had.
        OutputError: If the folder is there already, or cannot be written.
        MissingExtraError: If `datasets` is not installed.
    """
    if benchmark not in _WRITERS:
        raise ConfigError(f"{benchmark!r} cannot be fetched, have {', '.join(_WRITERS)}.")
    rows, text = load_rows or _load_from_hub, load_text or _load_from_web
    target = folder / benchmark
    with publish_folder(target) as staging:
        try:
            _WRITERS[benchmark](staging, rows, text)
        except (KeyError, IndexError, TypeError) as error:
            raise DataError(
                f"{benchmark} on the hub has another form than this version knows ({error!r}). "
                "Put the files in the upstream layout yourself; docs/evaluation.md shows it."
            ) from error
    return target


def _mmlu(folder: Path, load_rows: LoadRows, _load_text: LoadText) -> None:
    for split in ("dev", "test"):
        by_subject: dict[str, list[list[str]]] = {subject: [] for subject in MMLU_SUBJECTS}
        for row in load_rows("cais/mmlu", "all", split):
            cells = [row["question"], *row["choices"], "ABCD"[row["answer"]]]
            by_subject[row["subject"]].append(cells)
        for subject, rows in by_subject.items():
            _write_csv(folder / split / f"{subject}_{split}.csv", rows)


def _ceval(folder: Path, load_rows: LoadRows, _load_text: LoadText) -> None:
    header = ["id", "question", "A", "B", "C", "D", "answer", "explanation"]
    for subject in CEVAL_SUBJECTS:
        for split in ("dev", "val", "test"):
            rows = load_rows("ceval/ceval-exam", subject, split)
            cells = [[str(row.get(name, "")) for name in header] for row in rows]
            _write_csv(folder / split / f"{subject}_{split}.csv", [header, *cells])


def _gsm8k(folder: Path, load_rows: LoadRows, _load_text: LoadText) -> None:
    for split in ("train", "test"):
        rows = load_rows("openai/gsm8k", "main", split)
        lines = [
            json.dumps({"question": row["question"], "answer": row["answer"]}, ensure_ascii=False)
            for row in rows
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _bbh(folder: Path, load_rows: LoadRows, load_text: LoadText) -> None:
    for name in ("data", "lib_prompt"):
        (folder / name).mkdir()
    for task in TASKS:
        rows = load_rows("lukaemon/bbh", task, "test")
        examples = [{"input": row["input"], "target": row["target"]} for row in rows]
        text = json.dumps({"examples": examples}, ensure_ascii=False, indent=1)
        (folder / "data" / f"{task}.json").write_text(text, encoding="utf-8")
        # The authors' files begin with a notice and a line of dashes.
        prompt = load_text(f"{BBH_PROMPTS}/{task}.txt").partition("\n-----\n")
        (folder / "lib_prompt" / f"{task}.txt").write_text(prompt[2] or prompt[0], encoding="utf-8")


_WRITERS: dict[str, Callable[[Path, LoadRows, LoadText], None]] = {
    "mmlu": _mmlu,
    "ceval": _ceval,
    "bbh": _bbh,
    "gsm8k": _gsm8k,
}


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _load_from_hub(repository: str, configuration: str, split: str) -> Rows:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError(
            "Fetching data needs datasets: pip install 'nan-merge[language]'"
        ) from error
    try:
        return load_dataset(repository, configuration, split=split)  # pyright: ignore
    except Exception as error:  # whatever the network, the hub or its client come up with
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"The hub did not give {repository} ({configuration}, {split}): {reason}. Is there a "
            "connection to huggingface.co? Else put the files in the upstream layout yourself."
        ) from error


def _load_from_web(url: str) -> str:
    try:
        with urlopen(url, timeout=_SECONDS) as answer:
            return answer.read().decode("utf-8")
    except (URLError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot fetch {url}: {error}.") from error
