"""Check a folder of questions about pictures: every question, and every picture decoded once.

Nothing is unpickled, and no picture is decoded that says it is too large.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from evaluators.benchmarks import ai2d, geoqa, mathvista, wemath
from evaluators.benchmarks.picture_tables import OnPicture, PictureRow
from evaluators.data_check import DataReport, DataRow, canonical_digest
from evaluators.pictures import decode_picture, is_animated, open_header
from evaluators.samples import Message, Sample
from nan_merge.errors import DataError

MAX_PROBLEMS = 20
# Of the public files; evaluators/benchmarks/*.py say whose they are.
KNOWN_FILES = {
    ("mathvista", "testmini.json"): (
        "sha256", "ab0148dca9d401c31cc47f29b3826eec28a76ff155a1c0878d81e8daf0413480"),
    ("mathvista", "MathVista_MINI.tsv"): ("md5", "f199b98e178e5a2a20e7048f5dcb0464"),
    ("wemath", "testmini.json"): (
        "sha256", "6e849930f3947ff1aaad0462519d6f97c65fec3453d8e05b7bb530c7af42e3e1"),
    ("wemath", "WeMath.tsv"): ("md5", "b5e969a075f01290a542411fb7766388"),
    ("ai2d", "AI2D_TEST.tsv"): ("md5", "0f593e0d1c7df9a3d69bf1f947e71975"),
    ("geoqa", "test_questions.jsonl"): (
        "sha256", "237983db2560c01932ed499563b8cacc96d254c7e9e9c51674f512f4ccbedd83"),
    ("geoqa", "test_answers.jsonl"): (
        "sha256", "e701b6e26a885a5e2fb82e6a8f463dc2b248918cfedff66bc17ae49093928307"),
}  # fmt: skip
_ROWS: dict[str, Callable[[Path, OnPicture], list[PictureRow]]] = {
    "mathvista": mathvista.read_rows,
    "wemath": wemath.read_rows,
    "ai2d": ai2d.read_rows,
    "geoqa": geoqa.read_rows,
}
_SAMPLES: dict[str, Callable[[Path], list[Sample]]] = {
    "mathvista": mathvista.read_samples,
    "wemath": wemath.read_samples,
    "ai2d": ai2d.read_samples,
    "geoqa": geoqa.read_samples,
}


class _Pictures:
    """What is found of pictures while they are read."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.odd: Counter[str] = Counter()

    def check(self, place: str, content: bytes) -> None:
        """Decode one, and note what is wrong or odd."""
        try:
            picture = open_header(place, content)
            if is_animated(picture):
                self.odd["are animated; a model is shown the first frame"] += 1
            if picture.mode not in ("RGB", "L", "P", "1"):
                self.odd[f"are {picture.mode}; a model is shown them as RGB"] += 1
            decode_picture(place, content)
        except DataError as error:
            self.problems.append(str(error))


def check_pictures(benchmark: str, folder: Path, num_published: int) -> DataReport:
    """Check the data of one benchmark of questions about pictures."""
    pictures, samples, problems = _Pictures(), [], []
    num_rows = 0
    try:
        num_rows = len(_ROWS[benchmark](folder, pictures.check))
        if not pictures.problems:
            samples = _SAMPLES[benchmark](folder)
    except DataError as error:
        problems.append(str(error))
    problems += pictures.problems[:MAX_PROBLEMS]
    if rest := pictures.problems[MAX_PROBLEMS:]:
        problems.append(f"{folder}: and {len(rest)} more images that cannot be shown")
    if num_rows and num_rows != num_published:
        problems.append(f"{folder}: has {num_rows:,} questions, {num_published:,} are published")
    if benchmark == "wemath" and samples:
        problems += _incomplete_problems(samples)
    notes = tuple(f"{count} images {what}" for what, count in pictures.odd.items())
    row = DataRow(benchmark, "test", num_published, num_rows, tuple(problems), notes)
    digest = canonical_digest(map(_record, samples)) if samples else None
    return DataReport(benchmark, folder, (row,), digest, _is_public(benchmark, folder), ())


def _record(sample: Sample) -> dict[str, object]:
    """What is scored, without what differs from layout to layout."""
    asked = [each.content for each in sample.question if isinstance(each, Message)]
    return {"question": asked, "options": list(sample.options), "answer": sample.gold}


def _incomplete_problems(samples: Sequence[Sample]) -> list[str]:
    by_problem: dict[str, list[str]] = {}
    for sample in samples:
        by_problem.setdefault(sample.cluster_id, []).append(sample.tags[0])
    found: list[str] = []
    for problem, keys in by_problem.items():
        wanted = {key for key in wemath.KEYS if key[0] == keys[0][0]}
        if set(keys) != wanted:
            lacking = ", ".join(sorted(wanted - set(keys))) or "no part"
            found.append(f"problem {problem} lacks {lacking}, so it has none of four dimensions")
    return found[:MAX_PROBLEMS]


def _is_public(benchmark: str, folder: Path) -> bool | None:
    """Whether all files that are known are the public ones, bit by bit; None if there is none."""
    found: list[bool] = []
    for (owner, name), (kind, expected) in KNOWN_FILES.items():
        for path in (folder / name, folder / "data" / name):
            if owner == benchmark and path.is_file():
                with path.open("rb") as file:
                    found.append(hashlib.file_digest(file, kind).hexdigest() == expected)
    return all(found) if found else None
