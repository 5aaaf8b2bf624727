"""Check a folder of benchmark data: sizes, answers, ids, checksums and what it contains.

`check_data` finds everything that is wrong at once; reading samples stops at the first.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from evaluators.benchmarks import bbh, bbh_tasks, ceval, ceval_subjects, gsm8k, mmlu, mmlu_subjects
from evaluators.benchmarks.files import read_json_lines
from evaluators.benchmarks.questions import LABELS, Question, read_questions
from nan_merge.errors import ConfigError, DataError

Record = Mapping[str, Any]


@dataclass(frozen=True)
class DataRow:
    """What was found of one subset.

    Attributes:
        subset: Its name.
        split: Of the benchmark, e.g. "test"; "prompt" for solved examples in a file of their own.
        num_expected: Published number of questions; None if only their sum is published.
        num_found: Questions in the folder; 0 if they cannot be read.
        problems: What is wrong, each with file and line.
        notes: What is odd but as published, e.g. questions that are there twice.
    """

    subset: str
    split: str
    num_expected: int | None
    num_found: int
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataReport:
    """What was found of a benchmark.

    Attributes:
        benchmark: Its name.
        folder: That was checked.
        rows: One per file, in a fixed order.
        digest: SHA-256 of the content, in hexadecimal, the same for CSV, JSON and parquet; None
            if something cannot be read.
        is_known: Whether the digest is that of the public data; None if that is not known.
        problems: Of no single file.
    """

    benchmark: str
    folder: Path
    rows: tuple[DataRow, ...]
    digest: str | None
    is_known: bool | None
    problems: tuple[str, ...]

    @property
    def num_questions(self) -> int:
        """Questions that are scored."""
        return sum(row.num_found for row in self.rows if row.split in ("test", "val"))

    @property
    def num_published(self) -> int:
        """Questions that are scored, as published."""
        return _NUM_PUBLISHED[self.benchmark]

    def all_problems(self) -> list[str]:
        """Everything that is wrong."""
        return [*self.problems, *(problem for row in self.rows for problem in row.problems)]


@dataclass(frozen=True)
class _Part:
    """One file of a benchmark: its name, its published size, and how it is read."""

    subset: str
    split: str
    num_expected: int | None
    path: Path
    read: Callable[[Path], Sequence[Record]]
    sha256: str | None = None


def check_data(benchmark: str, folder: Path) -> DataReport:
    """Check the data of one benchmark.

    Raises:
        ConfigError: If there is no such benchmark.
    """
    if benchmark in PICTURE_BENCHMARKS:
        from evaluators.picture_check import check_pictures

        return check_pictures(benchmark, folder, _NUM_PUBLISHED[benchmark])
    parts = _parts(benchmark, folder)
    rows: list[DataRow] = []
    lines: list[Record] | None = []
    for part in parts:
        row, records = _check_part(part)
        rows.append(row)
        lines = None if records is None or lines is None else [*lines, *records]
    problems = _wrong_sum(benchmark, rows)
    digest = None if lines is None else canonical_digest(lines)
    known = KNOWN_DIGESTS.get(benchmark)
    is_known = None if known is None or digest is None else digest == known
    return DataReport(benchmark, folder, tuple(rows), digest, is_known, problems)


def canonical_digest(records: Iterable[Record]) -> str:
    """SHA-256 over one line of JSON a record, keys sorted, no blanks, UTF-8; in hexadecimal."""
    digest = hashlib.sha256()
    for record in records:
        line = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


KNOWN_DIGESTS = {
    "mmlu": "c74c809ce8f0be862fc459c0d480c4bbe88322b6c7db79ee64b7c751f37619dc",
    "bbh": "f2e3fcfea624a646faa86d68a77546b73f28cd32390a377ccb8ff7f030eca56e",
    "gsm8k": "32c548f08195e19e33408b844dd7be6aa4bcae457d957bc05909ff4bd4a00595",
}
"""Of the public data, solved examples included where they are part of the folder."""
BBH_COMMIT = "9ee07bd481feebf959a6b59d61ea57bdcf30964d"
"""Of github.com/suzgunmirac/BIG-Bench-Hard, from which the checksums are."""

PICTURE_BENCHMARKS = ("mathvista", "wemath", "ai2d", "geoqa")
"""Whose questions are about pictures; `evaluators.picture_check` checks them."""
CHECKED_BENCHMARKS = ("mmlu", "ceval", "bbh", "gsm8k", *PICTURE_BENCHMARKS)
"""That have a folder of their own; "ceval-test" is checked too, it lies in that of "ceval"."""
_NUM_PUBLISHED = {
    "mmlu": 14_042,
    "ceval": 1_346,
    "ceval-test": 12_342,
    "bbh": 6_511,
    "gsm8k": 1_319,
    "mathvista": 1_000,
    "wemath": 1_740,
    "ai2d": 3_088,
    "geoqa": 754,
}
_CEVAL_SPLITS = {"ceval": "val", "ceval-test": "test"}


@lru_cache
def bbh_checksums() -> dict[str, tuple[str, str]]:
    """Task -> SHA-256 of its questions and of its solved examples, as the authors publish them."""
    path = Path(bbh.__file__).with_name("bbh_checksums.tsv")
    lines = path.read_text(encoding="utf-8").splitlines()
    return {task: (data, prompt) for task, _, data, prompt in (line.split("\t") for line in lines)}


def _parts(benchmark: str, folder: Path) -> list[_Part]:
    if benchmark == "mmlu":
        return [
            _Part(subject, split, size, mmlu.question_path(folder, split, subject), _questions)
            for subject, num_test in mmlu_subjects.NUM_TEST_SAMPLES.items()
            for split, size in (("dev", 5), ("test", num_test))
        ]
    if benchmark in _CEVAL_SPLITS:
        return [
            _Part(subject, split, size, ceval.question_path(folder, split, subject), read)
            for subject in ceval_subjects.SUBJECTS
            for split, size, read in (
                ("dev", 5, _ceval_questions),
                (_CEVAL_SPLITS[benchmark], None, _ceval_questions),
            )
        ]
    if benchmark == "bbh":
        return [part for task in bbh_tasks.TASKS for part in _bbh_parts(folder, task)]
    if benchmark == "gsm8k":
        return [_Part("gsm8k", "test", _NUM_PUBLISHED["gsm8k"], folder / "test.jsonl", _problems)]
    known = ", ".join(_NUM_PUBLISHED)
    raise ConfigError(f"There is no benchmark {benchmark!r} whose data can be checked: {known}.")


def _bbh_parts(folder: Path, task: str) -> list[_Part]:
    data, prompt = bbh_checksums()[task]
    size, path = bbh_tasks.NUM_SAMPLES[task], bbh.data_path(folder, task)
    return [
        _Part(task, "test", size, path, _bbh_examples, data),
        _Part(task, "prompt", None, bbh.prompt_path(folder, task), _bbh_prompt, prompt),
    ]


def _check_part(part: _Part) -> tuple[DataRow, Sequence[Record] | None]:
    try:
        records = part.read(part.path)
    except DataError as error:
        return DataRow(part.subset, part.split, part.num_expected, 0, (str(error),)), None
    problems: list[str] = []
    if part.num_expected is not None and len(records) != part.num_expected:
        problems.append(
            f"{part.path}: has {len(records)} questions, {part.num_expected} are published"
        )
    notes: list[str] = []
    if part.sha256 is not None and _sha256(part) != part.sha256:
        problems.append(f"{part.path}: its SHA-256 is not that of the authors' file")
    copies = sum(count - 1 for count in Counter(map(str, records)).values())
    if copies:
        notes.append(f"{copies} repeat others")
    num_found = 0 if part.split == "prompt" else len(records)
    row = DataRow(
        part.subset, part.split, part.num_expected, num_found, tuple(problems), tuple(notes)
    )
    return row, records


def _sha256(part: _Part) -> str:
    if part.split == "prompt":  # the two lines that the authors' files begin with do not count
        return hashlib.sha256(bbh.read_prompt(part.path).encode()).hexdigest()
    return hashlib.sha256(part.path.read_bytes()).hexdigest()


def _wrong_sum(benchmark: str, rows: Sequence[DataRow]) -> tuple[str, ...]:
    split = _CEVAL_SPLITS.get(benchmark)
    if split is None:
        return ()
    found = sum(row.num_found for row in rows if row.split == split)
    expected = _NUM_PUBLISHED[benchmark]
    if found == expected:
        return ()
    return (f"{split} has {found:,} questions in all, {expected:,} are published",)


def _questions(path: Path, header: Sequence[str] | None = None) -> list[Record]:
    return [_question_record(question) for question in read_questions(path, header)]


def _ceval_questions(path: Path) -> list[Record]:
    ceval.refuse_blank_answers(path)
    return _questions(path, ceval.COLUMNS)


def _question_record(question: Question) -> Record:
    options = dict(zip(LABELS, question.options, strict=True))
    return {"question": question.text, "answer": question.answer, **options}


def _bbh_examples(path: Path) -> list[Record]:
    return [{"input": question, "target": gold} for question, gold in bbh.read_examples(path)]


def _bbh_prompt(path: Path) -> list[Record]:
    return [{"prompt": bbh.read_prompt(path)}]


def _problems(path: Path) -> list[Record]:
    gsm8k.read_problems(path)
    fields = ("question", "answer")
    return [{key: record[key] for key in fields} for _, record in read_json_lines(path)]
