"""What the YAML file of a benchmark of one's own may say; docs/benchmarks.md shows it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from nan_merge.schema import StrictModel


def _check_template(text: str) -> str:
    from evaluators.custom_templates import template_problem

    problem = template_problem(text)
    if problem:
        raise ValueError(f"is no template of jinja2: {problem}")
    return text


def _check_pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from error
    return text


def _check_file(text: str) -> str:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{text!r} leaves the folder of the data, expected a path within it")
    if path.suffix not in (".csv", ".jsonl", ".parquet"):
        raise ValueError(f"{text!r} is no .csv, .jsonl or .parquet file")
    return text


Template = Annotated[str, AfterValidator(_check_template)]
File = Annotated[str, AfterValidator(_check_file)]
Labels = Annotated[tuple[str, ...], Field(min_length=2)]


class LetterExtraction(StrictModel):
    """The label that the answer states last: "The answer is (B)", "ANSWER: b", "B. Paris"."""

    kind: Literal["letter"] = "letter"
    labels: Labels = ("A", "B", "C", "D")
    """One capital letter each."""

    @model_validator(mode="after")
    def _check_letters(self) -> Self:
        if not all(re.fullmatch("[A-Z]", label) for label in self.labels):
            raise ValueError(f"labels: found {list(self.labels)}, expected one capital letter each")
        return self


class NumberExtraction(StrictModel):
    """The number that the answer states last, else the last number in it."""

    kind: Literal["number"] = "number"


class BoxedExtraction(StrictModel):
    r"""What stands in the braces of the last \boxed{...}."""

    kind: Literal["boxed"] = "boxed"


class RegexExtraction(StrictModel):
    """What a regular expression finds: its first group, or all of it if it has none."""

    kind: Literal["regex"] = "regex"
    pattern: Annotated[str, AfterValidator(_check_pattern)]
    take: Literal["first", "last"] = "last"
    """Which of several."""


Extraction = Annotated[
    LetterExtraction | NumberExtraction | BoxedExtraction | RegexExtraction | None,
    Field(discriminator="kind"),
]


class Shots(StrictModel):
    """Solved examples before the question."""

    questions: File
    """The file that they are in; with subsets, its rows are those of the question's subset."""
    count: int = Field(5, ge=1)
    """How many: the first ones of the file."""
    solution: Template
    """What follows an example's prompt, e.g. " {{ answer }}\\n\\n"."""


class CustomBenchmark(StrictModel):
    """A benchmark of one's own: a table of questions, a prompt, and how answers are scored."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """What reports call it: small letters, digits and hyphens."""
    questions: File
    """A table with a question a row: .csv with a header, .jsonl or .parquet."""
    prompt: Template
    """A template of jinja2 over the columns of a row, e.g. "Question: {{ question }}\\nAnswer:"."""
    gold: Template
    """Likewise, of the right answer: a label where there are labels."""
    system: str = ""
    """What a chat model is told first."""
    chat_template: bool = False
    """Whether the model's chat template is applied."""
    shots: Shots | None = None
    choices: tuple[Template, ...] = ()
    """Continuations of the prompt whose likelihoods are compared, instead of `extract`."""
    labels: tuple[str, ...] = ()
    """What each choice means as an answer; the choices' own text without blanks if left out."""
    extract: Extraction = None
    """How the answer is found in what the model writes, instead of `choices`."""
    max_tokens: int = Field(512, ge=1)
    """Most tokens that it writes."""
    stop: tuple[str, ...] = ()
    """Strings that end what it writes."""
    metric: Literal["exact", "number"] | None = None
    """How answers are compared: as text but for capitals and blanks, or as numbers; the default
    is number for `extract: {kind: number}`, else exact."""
    subset: str | None = None
    """A column: the benchmark's score is the mean over its values, which `subsets` lists."""
    subsets: tuple[str, ...] = ()
    id: str | None = None
    """A column of ids; row numbers if left out."""
    cluster: str | None = None
    """A column: questions with one value share a source, e.g. a passage."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        problem = _mismatch(self)
        if problem:
            raise ValueError(problem)
        return self


def _mismatch(benchmark: CustomBenchmark) -> str | None:
    choices, labels = benchmark.choices, benchmark.labels
    if bool(choices) == (benchmark.extract is not None):
        return "expected either choices or extract"
    if len(choices) == 1:
        return "choices: found one, expected at least two"
    if labels and len(labels) != len(choices):
        return f"labels: found {len(labels)} for {len(choices)} choices, expected one each"
    if bool(benchmark.subsets) != (benchmark.subset is not None):
        return "expected both subset, a column, and subsets, its values, or neither"
    for key, values in (("subsets", benchmark.subsets), ("labels", labels)):
        if len(set(values)) != len(values):
            return f"{key}: some are there twice: {_join(values)}"
    return None


def _join(values: Sequence[str]) -> str:
    return ", ".join(values)
