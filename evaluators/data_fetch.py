"""Fetch the data of a benchmark from its public place, and write it in the upstream layout.

Parquet files come from the Hugging Face hub (`HF_ENDPOINT` and `hf auth login` count as ever), the
files of BIG-Bench Hard from its authors' repository at a fixed commit. No code of theirs is run.
Files that the hub's client has whole stay in its cache: a fetch that was killed goes on from them.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

from evaluators.benchmarks import bbh, bbh_tasks, ceval, ceval_subjects, mmlu, mmlu_subjects
from evaluators.benchmarks.questions import LABELS
from evaluators.data_check import BBH_COMMIT, PICTURE_BENCHMARKS, bbh_checksums, check_data
from nan_merge.errors import ConfigError, DataError, MissingExtraError, OutputError
from nan_merge.publish import publish_folder

BBH_ADDRESS = f"https://raw.githubusercontent.com/suzgunmirac/BIG-Bench-Hard/{BBH_COMMIT}"
REPOSITORIES = {
    "mmlu": "cais/mmlu",
    "ceval": "ceval/ceval-exam",
    "gsm8k": "openai/gsm8k",
}
Rows = Sequence[Mapping[str, Any]]


def fetch_benchmark(
    benchmark: str, folder: Path, revision: str | None = None, address: str | None = None
) -> Path:
    """Fetch a benchmark's data into ``folder/BENCHMARK``; it appears when it is whole and checked.

    Args:
        benchmark: mmlu, ceval, bbh, gsm8k, mathvista, wemath, ai2d or geoqa.
        folder: Where folders of benchmarks lie.
        revision: Of the hub's repository; if None the commit that is known to hold the data where
            there is one (`evaluators.picture_fetch`), else its main branch. Not for bbh.
        address: Where the files lie that are not on the hub: those of bbh, the questions of geoqa.

    Raises:
        ConfigError: If the benchmark is unknown, or bbh's revision is asked for.
        DataError: If the place cannot be reached, its data has another form than it had, or it
            fails `check_data`.
        MissingExtraError: If parquet cannot be read here.
        OutputError: If the folder is taken or cannot be written.
    """
    writers: dict[str, Callable[[Path], None]] = {
        "mmlu": lambda staging: _write_mmlu(staging, revision),
        "ceval": lambda staging: _write_ceval(staging, revision),
        "bbh": lambda staging: _write_bbh(staging, address or BBH_ADDRESS),
        "gsm8k": lambda staging: _write_gsm8k(staging, revision),
    }
    if benchmark in PICTURE_BENCHMARKS:
        from evaluators.picture_fetch import write_pictures

        writers[benchmark] = lambda staging: write_pictures(benchmark, staging, revision, address)
    if benchmark not in writers:
        known = ", ".join([*writers, *PICTURE_BENCHMARKS])
        raise ConfigError(f"{benchmark!r} cannot be fetched, have {known}.")
    if benchmark == "bbh" and revision is not None:
        raise ConfigError(f"bbh comes from its authors at {BBH_COMMIT[:7]}; leave --revision out.")
    target = folder / benchmark
    with publish_folder(target) as staging:
        try:
            writers[benchmark](staging)
        except (KeyError, IndexError, TypeError) as error:
            raise DataError(
                f"{benchmark} on the hub has another form than this version knows ({error!r}). "
                "Put the files in the upstream layout yourself; docs/benchmarks.md shows it."
            ) from error
        _refuse_problems(benchmark, staging, target)
    return target


def _refuse_problems(benchmark: str, staging: Path, target: Path) -> None:
    problems = check_data(benchmark, staging).all_problems()
    if problems:
        first = problems[0].replace(str(staging), str(target))
        more = f" ({len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise DataError(f"What was fetched is not {benchmark} as published: {first}{more}")


def _write_mmlu(folder: Path, revision: str | None) -> None:
    snapshot_folder = snapshot(
        REPOSITORIES["mmlu"], [f"*/{split}-*.parquet" for split in ("dev", "test")], revision
    )
    for subject in mmlu_subjects.SUBJECTS:
        for split in ("dev", "test"):
            rows = (
                [row["question"], *row["choices"], LABELS[row["answer"]]]
                for row in _read_parquet(snapshot_folder / subject, split)
            )
            _write_csv(mmlu.question_path(folder, split, subject), rows)


def _write_ceval(folder: Path, revision: str | None) -> None:
    columns = (*ceval.COLUMNS, "explanation")
    snapshot_folder = snapshot(REPOSITORIES["ceval"], ["*/*.parquet"], revision)
    for subject in ceval_subjects.SUBJECTS:
        for split in ("dev", "val", "test"):
            rows = _read_parquet(snapshot_folder / subject, split)
            cells = [[row.get(column, "") for column in columns] for row in rows]
            _write_csv(ceval.question_path(folder, split, subject), [columns, *cells])


def _write_gsm8k(folder: Path, revision: str | None) -> None:
    snapshot_folder = snapshot(REPOSITORIES["gsm8k"], ["main/*.parquet"], revision)
    for split in ("train", "test"):
        lines = [
            json.dumps({key: row[key] for key in ("question", "answer")}, ensure_ascii=False)
            for row in _read_parquet(snapshot_folder / "main", split)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_bbh(folder: Path, address: str) -> None:
    for name in ("data", "lib_prompt"):
        (folder / name).mkdir()
    for task in bbh_tasks.TASKS:
        data, prompt = bbh_checksums()[task]
        content = download(f"{address}/bbh/{task}.json")
        refuse_other(content, data, f"{address}/bbh/{task}.json")
        bbh.data_path(folder, task).write_bytes(content)
        # The authors' first two lines ask not to train on the file; they are no part of the prompt.
        content = b"".join(download(f"{address}/cot-prompts/{task}.txt").splitlines(True)[2:])
        refuse_other(content, prompt, f"{address}/cot-prompts/{task}.txt")
        bbh.prompt_path(folder, task).write_bytes(content)


def snapshot(repository: str, patterns: list[str], revision: str | None) -> Path:
    """Files of a repository of data on the hub, in the hub's cache.

    Raises:
        DataError: If the hub cannot be reached, has no such repository or revision, or wants its
            terms accepted first.
        OutputError: If the disk with the hub's cache is full.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    # The errors of the HTTP library, which is another one in each generation of the client.
    http_errors: Any = HfHubHTTPError.__bases__
    try:
        return Path(
            snapshot_download(
                repository, repo_type="dataset", revision=revision, allow_patterns=patterns
            )
        )
    except GatedRepoError as error:
        raise DataError(
            f"{repository} is gated: accept its terms at {constants.ENDPOINT}/datasets/{repository}"
            ", sign in with `hf auth login`, and run the same command again."
        ) from error
    except RevisionNotFoundError as error:
        raise DataError(
            f"{repository} on the hub has no revision {revision}. Name one that it has: "
            "--revision main is the newest."
        ) from error
    except (*http_errors, LocalEntryNotFoundError, OSError) as error:
        _refuse_full_disk(error, constants.HF_HUB_CACHE)
        raise DataError(
            f"{repository} cannot be fetched from the hub: {' '.join(str(error).split())[:200]} "
            "Where there is no network, bring the data in the upstream layout (docs/benchmarks.md)."
        ) from error


def _refuse_full_disk(error: Exception, cache: str) -> None:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        raise OutputError(
            f"No space left on the disk with the hub's cache, {cache}. Free some, or set HF_HOME "
            "to a folder on another disk; the same command goes on from the files that are whole."
        ) from error


def _read_parquet(folder: Path, split: str) -> Rows:
    try:
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise MissingExtraError(
            "data from the hub is parquet, which needs pyarrow: pip install 'nan-merge[language]'"
        ) from error
    files = sorted(folder.glob(f"{split}-*.parquet"))
    if not files:
        raise DataError(f"The hub's repository has no {folder.name}/{split}-*.parquet.")
    return [row for file in files for row in read_table(file).to_pylist()]


def download(address: str) -> bytes:
    """What lies at an address of the web.

    Raises:
        DataError: If it cannot be reached.
    """
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.read()
    except (OSError, HTTPException) as error:  # the latter where an answer breaks off
        raise DataError(
            f"{address} cannot be fetched: {error}. Where there is no network, bring the data in "
            "the upstream layout (docs/benchmarks.md)."
        ) from error


def refuse_other(content: bytes, sha256: str, address: str) -> None:
    """See that a file is the one that is known.

    Raises:
        DataError: If its SHA-256 is another.
    """
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{address}: its SHA-256 is not that of the authors' file")


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.getvalue(), encoding="utf-8")
