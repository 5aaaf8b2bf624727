"""A benchmark of one's own: from a YAML file to a profile, without code."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluators.benchmarks import PROFILES
from evaluators.benchmarks.files import read_csv, read_json_lines
from evaluators.custom_schema import CustomBenchmark, LetterExtraction, RegexExtraction
from evaluators.custom_templates import fill
from evaluators.extraction import stated_label
from evaluators.extraction_numbers import boxed_text, numbers_equal, stated_number
from evaluators.profiles import Decoding, Profile, Scorer, Upstream
from evaluators.samples import Message, Piece, Sample
from evaluators.scorers import CHOICE_SCORERS, IsEqual, written_label, written_text
from nan_merge.errors import ConfigError, DataError, MissingExtraError
from nan_merge.yaml_config import load_config

PROFILE_NAME = "custom"


class TableRow(NamedTuple):
    """One row of a table of questions: "FILE:LINE", and column -> value."""

    place: str
    values: dict[str, Any]


def load_benchmark(path: Path, overrides: Sequence[str] = ()) -> Profile:
    """Read the YAML file of a benchmark.

    The profile's `samples` takes the folder that the file's tables lie in. Its upstream is the
    file itself, its commit the file's SHA-256.

    Raises:
        ConfigError: If anything is wrong with the file; a line for every problem.
    """
    benchmark = load_config(path, CustomBenchmark, overrides)
    if any(name == benchmark.name for name, _ in PROFILES):
        raise ConfigError(f"{path}: name: {benchmark.name} is a benchmark already, choose another")
    scorer = _scorer(benchmark)
    is_written = benchmark.extract is not None
    return Profile(
        benchmark=benchmark.name,
        name=PROFILE_NAME,
        upstream=Upstream("", path.name, hashlib.sha256(path.read_bytes()).hexdigest()),
        samples=lambda folder: read_samples(benchmark, folder),
        decoding=Decoding(benchmark.max_tokens, benchmark.stop) if is_written else None,
        uses_chat_template=benchmark.chat_template,
        scorers={"compat": scorer, "strict": scorer} if is_written else CHOICE_SCORERS,
        subsets=benchmark.subsets or (benchmark.name,),
    )


def read_samples(benchmark: CustomBenchmark, folder: Path) -> list[Sample]:
    """Ask the questions of a benchmark's table.

    Raises:
        DataError: If a table is missing or damaged, a template names a column that it lacks, an
            id is there twice, a gold answer is blank or no label, or a subset has no questions.
    """
    rows = read_table(folder / benchmark.questions)
    shots = _shots_of(benchmark, folder)
    samples: list[Sample] = []
    seen: dict[str, str] = {}
    for number, row in enumerate(rows):
        sample = _sample(benchmark, number, row, shots)
        if sample.id in seen:
            raise DataError(f"{row.place}: id {sample.id!r} is also that of {seen[sample.id]}")
        seen[sample.id] = row.place
        samples.append(sample)
    missing = set(benchmark.subsets) - {sample.subset for sample in samples}
    if missing:
        raise DataError(
            f"{folder / benchmark.questions}: no questions on {', '.join(sorted(missing))}"
        )
    return samples


def read_table(path: Path) -> list[TableRow]:
    """The rows of a .csv file with a header, a .jsonl or a .parquet file.

    Raises:
        DataError: If it is missing or damaged, or has no rows.
        MissingExtraError: If it is parquet, which cannot be read here.
    """
    if path.suffix == ".csv":
        header, *rows = read_csv(path)
        table = [
            TableRow(row.place, dict(zip(header.cells, row.cells, strict=True))) for row in rows
        ]
    elif path.suffix == ".jsonl":
        table = [TableRow(place, record) for place, record in read_json_lines(path)]
    else:
        table = [TableRow(f"{path}: row {n}", row) for n, row in enumerate(_read_parquet(path), 1)]
    if not table:
        raise DataError(f"{path}: has no questions")
    return table


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table as read_parquet
    except ImportError as error:
        raise MissingExtraError(
            "parquet needs pyarrow: pip install 'nan-merge[language]'"
        ) from error
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return read_parquet(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: is not parquet: {error}") from error


def _sample(
    benchmark: CustomBenchmark,
    number: int,
    row: TableRow,
    shots: Callable[[str], tuple[Piece, ...]],
) -> Sample:
    choices = tuple(fill(each, row.values, row.place, "choices") for each in benchmark.choices)
    labels = benchmark.labels or tuple(choice.strip() for choice in choices)
    if isinstance(benchmark.extract, LetterExtraction):
        labels = benchmark.extract.labels
    subset = _subset(benchmark, row)
    identity = _column(row, benchmark.id, "id") if benchmark.id else str(number)
    cluster = _column(row, benchmark.cluster, "cluster") if benchmark.cluster else identity
    return Sample(
        id=f"{subset}/{identity}",
        cluster_id=f"{subset}/{cluster}",
        subset=subset,
        lead=_lead(benchmark),
        shots=shots(subset),
        question=_asked(benchmark, row),
        choices=choices,
        labels=labels,
        gold=_gold(benchmark, row, labels),
    )


def _column(row: TableRow, column: str, key: str) -> str:
    value = row.values.get(column)
    if value is None or not str(value).strip():
        raise DataError(f"{row.place}: {key}: column {column!r} is missing or blank")
    return str(value)


def _subset(benchmark: CustomBenchmark, row: TableRow) -> str:
    if benchmark.subset is None:
        return benchmark.name
    subset = _column(row, benchmark.subset, "subset")
    if subset not in benchmark.subsets:
        raise DataError(f"{row.place}: subset: {subset!r} is not in subsets")
    return subset


def _gold(benchmark: CustomBenchmark, row: TableRow, labels: Sequence[str]) -> str:
    gold = fill(benchmark.gold, row.values, row.place, "gold").strip()
    if not gold:
        raise DataError(f"{row.place}: gold: the answer is blank; the question cannot be scored")
    if labels and gold not in labels:
        raise DataError(f"{row.place}: gold: {gold!r} is none of the labels {', '.join(labels)}")
    return gold


def _lead(benchmark: CustomBenchmark) -> Piece:
    if not benchmark.chat_template:
        return f"{benchmark.system}\n\n" if benchmark.system else ""
    return (Message("system", benchmark.system),) if benchmark.system else ()


def _asked(benchmark: CustomBenchmark, row: TableRow) -> Piece:
    text = fill(benchmark.prompt, row.values, row.place, "prompt")
    return (Message("user", text),) if benchmark.chat_template else text


def _shots_of(benchmark: CustomBenchmark, folder: Path) -> Callable[[str], tuple[Piece, ...]]:
    """Subset -> its solved examples."""
    shots = benchmark.shots
    if shots is None:
        return lambda subset: ()
    path = folder / shots.questions
    by_subset: dict[str, list[Piece]] = {subset: [] for subset in benchmark.subsets}
    for row in read_table(path):
        found = by_subset.setdefault(_subset(benchmark, row), [])
        if len(found) < shots.count:
            found.append(_shown(benchmark, row, shots.solution))
    for subset, found in by_subset.items():
        if len(found) < shots.count:
            raise DataError(
                f"{path}: has {len(found)} examples on {subset}, shots.count wants {shots.count}"
            )
    pieces = {subset: tuple(found) for subset, found in by_subset.items()}
    return lambda subset: pieces[subset]


def _shown(benchmark: CustomBenchmark, row: TableRow, solution: str) -> Piece:
    answer = fill(solution, row.values, row.place, "shots.solution")
    asked = _asked(benchmark, row)
    if isinstance(asked, str):
        return asked + answer
    return (*asked, Message("assistant", answer))


def _scorer(benchmark: CustomBenchmark) -> Scorer:
    extract = benchmark.extract
    is_number = benchmark.metric == "number" or (
        benchmark.metric is None and extract is not None and extract.kind == "number"
    )
    is_equal: IsEqual = numbers_equal if is_number else _same_text
    if isinstance(extract, LetterExtraction):
        return written_label(stated_label, is_equal)
    if isinstance(extract, RegexExtraction):
        return written_text(_regex(extract), is_equal)
    if extract is not None and extract.kind == "number":
        return written_text(stated_number, is_equal)
    return written_text(boxed_text, is_equal)


def _same_text(found: str, gold: str) -> bool:
    return " ".join(found.split()).casefold() == " ".join(gold.split()).casefold()


def _regex(extraction: RegexExtraction) -> Callable[[str], str | None]:
    pattern = re.compile(extraction.pattern)
    place = 0 if extraction.take == "first" else -1

    def extract(text: str) -> str | None:
        found = list(pattern.finditer(text))
        if not found:
            return None
        match = found[place]
        return match.group(1) if pattern.groups else match.group()

    return extract
