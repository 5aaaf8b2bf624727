"""What a profile is: one fixed way to ask a benchmark's questions and to score the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from evaluators.answers import Answer
from evaluators.samples import Sample
from evaluators.scores import Score


@dataclass(frozen=True)
class Upstream:
    """Whose protocol a profile follows.

    Attributes:
        repository: e.g. "open-compass/opencompass".
        file: Path in it.
        commit: At which it was read.
    """

    repository: str
    file: str
    commit: str


@dataclass(frozen=True)
class Decoding:
    """How an answer is written. Always greedy.

    Attributes:
        max_tokens: Most new tokens.
        stop: Strings that end the answer; they are not part of it. The tokenizer's own end of
            sequence always ends it.
    """

    max_tokens: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What a scorer made of one answer.

    Attributes:
        extracted: The answer it found; None if it found none: an abstention, counted as wrong.
        is_correct: Whether it is right.
        credit: Share of the full score, in [0, 1], where the protocol gives a part of it; None
            where it knows right and wrong alone.
    """

    extracted: str | None
    is_correct: bool
    credit: float | None = None


class Judged(Protocol):
    """A sample and the verdict on what was answered: an `Outcome`."""

    @property
    def sample(self) -> Sample:
        """What was asked."""
        ...

    @property
    def is_correct(self) -> bool:
        """Whether the answer is right."""
        ...


@dataclass(frozen=True)
class ProblemScore:
    """What several answers to the samples of one problem are worth together.

    Attributes:
        cluster_id: The problem.
        finding: What they show, e.g. "IG".
        credit: Share of the full score, in [0, 1].
    """

    cluster_id: str
    finding: str
    credit: float


Scorer = Callable[[Sample, Answer], Verdict]
ScorerName = Literal["compat", "strict"]


@dataclass(frozen=True)
class Profile:
    """One fixed way to ask a benchmark's questions and to score the answers.

    Attributes:
        benchmark: e.g. "mmlu".
        name: e.g. "oc-gen-5shot".
        upstream: Whose protocol this is.
        samples: Reads a data folder in the upstream layout: folder -> samples, in a fixed order.
            Raises DataError if something is missing or damaged.
        decoding: How answers are written; None if likelihoods of choices are compared.
        uses_chat_template: Whether the model's chat template is applied by default.
        scorers: "compat" follows the upstream to the letter, "strict" mends its flaws; the first
            is the one that tables show.
        groups: Name of an average -> its subsets, e.g. "mmlu-stem" -> 19 subjects. The benchmark's
            own name is always the unweighted mean over all subsets, NAME + "-micro" the mean over
            samples.
        subsets: Names of all subsets; if one is missing there is no average.
        text_separator: What joins messages where no chat template is applied.
        user_turn_end: What upstream adds to every user's message where a chat template is
            applied, and only there.
        prefix_of: Samples with an equal prefix are computed one after the other.
        measures: Scores of its own, by name, besides averages of what was answered right.
        problem_scores: Those of its own scores that are means over problems, by name, each as its
            problems' credits: what two models can be paired by.
    """

    benchmark: str
    name: str
    upstream: Upstream
    samples: Callable[[Path], list[Sample]]
    decoding: Decoding | None
    uses_chat_template: bool
    scorers: Mapping[ScorerName, Scorer]
    subsets: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    text_separator: str = "\n"
    user_turn_end: str = ""
    prefix_of: Callable[[Sample], str] = lambda sample: sample.subset
    measures: Callable[[Sequence[Judged]], dict[str, Score]] | None = None
    problem_scores: Callable[[Sequence[Judged]], dict[str, list[ProblemScore]]] | None = None
