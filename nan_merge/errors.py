"""Errors that a user can mend. The command line prints their message and nothing else.

NanMergeError
├── ConfigError          a recipe or run file is wrong
├── CheckpointError      a checkpoint is missing, cut short, or lies about itself
├── IncompatibleError    checkpoints that do not fit each other
├── CoefficientError     coefficients that cannot be computed (zero or non-finite norms)
├── OutputError          the result cannot be written (folder taken, disk full)
├── MissingExtraError    an optional dependency is not installed
├── DataError            benchmark data is missing or damaged
├── EvaluationError      a model cannot be served or scored
└── EngineDiedError      an engine that served a model ended while it worked

Every message says what is wrong, where (file, tensor, field) and how to mend it. A mistake of
ours is an ``AssertionError`` or whatever Python raises, and keeps its traceback.
"""

import re
from collections.abc import Sequence


def one_of_each_kind(problems: Sequence[str]) -> list[str]:
    """A line for all problems that differ in numbers alone (of layers), and how many they are."""
    alike: dict[str, list[str]] = {}
    for problem in problems:
        alike.setdefault(re.sub(r"\d+", "0", problem), []).append(problem)
    return [
        first + (f" (and {len(rest)} more like it)" if rest else "")
        for first, *rest in alike.values()
    ]


class NanMergeError(Exception):
    """Something that the user can mend; the message is all that they need."""


class ConfigError(NanMergeError):
    """A recipe or run file does not follow its schema."""


class CheckpointError(NanMergeError):
    """A checkpoint cannot be read."""


class IncompatibleError(NanMergeError):
    """Checkpoints cannot be merged with each other; lists every problem at once."""


class CoefficientError(NanMergeError):
    """Coefficients cannot be computed from these models."""


class OutputError(NanMergeError):
    """The result cannot be written where it should go."""


class MissingExtraError(NanMergeError):
    """An optional dependency is missing; the message names the extra to install."""


class DataError(NanMergeError):
    """Benchmark data is missing or damaged."""


class EvaluationError(NanMergeError):
    """A model cannot be served or scored."""


class EngineDiedError(NanMergeError):
    """An engine that served a model ended while it worked; another one may do better."""
