"""What a model answered, sample by sample; written once, read by every score and comparison."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from nan_merge.errors import DataError
from nan_merge.publish import write_text_atomically


class Record(Protocol):
    """A frozen dataclass of one model's answer to one sample: `Prediction` or `Answer`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def sample_id(self) -> str:
        """Stable, unique within the benchmark."""
        ...


R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Prediction:
    """One answer to one sample.

    Attributes:
        sample_id: Stable, unique within the benchmark.
        cluster_id: Samples that share a source (a font, a part of a picture, a problem) share
            it, across benchmarks too; errors are computed over clusters.
        target: The right answer.
        answer: The model's answer.
        log_probability: Of the answer, natural logarithm.
    """

    sample_id: str
    cluster_id: str
    target: str
    answer: str
    log_probability: float

    @property
    def is_correct(self) -> bool:
        """Whether answer and target agree."""
        return self.answer == self.target

    @property
    def credit(self) -> float:
        """What the answer adds to a score: 1 if it is right, else 0."""
        return float(self.is_correct)


def write_predictions(path: Path, key: str, predictions: Iterable[Record]) -> None:
    """Write records as JSON lines, headed by a line with the key of what made them."""
    records = list(predictions)
    lines = [json.dumps({"key": key, "num_samples": len(records)})]
    lines += [json.dumps(asdict(record), ensure_ascii=False) for record in records]
    text = "\n".join(lines) + "\n"
    # Half a surrogate pair, of broken data, has no UTF-8; "\ud83d" is what JSON writes for it.
    write_text_atomically(path, text.encode(errors="backslashreplace").decode())


def read_key(path: Path) -> str | None:
    """The key that predictions were written under, or None if there are none."""
    try:
        with path.open(encoding="utf-8") as file:
            return json.loads(file.readline()).get("key")
    except (OSError, ValueError, AttributeError):
        return None


def parse_record(line: str | bytes, kind: type[R]) -> R:
    """One record from its line of JSON; lists become the tuples that they were.

    Raises:
        ValueError: If it is not JSON.
        TypeError: If it is not a record of this kind.
    """
    return _record(json.loads(line), kind)


def _record(content: dict[str, Any], kind: type[R]) -> R:
    for name, value in content.items():
        if type(value) is list:
            content[name] = tuple(value)
    return kind(**content)


def read_predictions(path: Path, kind: type[R]) -> list[R]:
    """Read what `write_predictions` wrote.

    Args:
        path: The file.
        kind: Class of the records in it.

    Raises:
        DataError: If the file is missing, cut short or edited into nonsense.
    """
    try:
        # Not splitlines: JSON leaves U+2028 and its like in strings as they are.
        first, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        # All lines at once: a call for each would take most of the time.
        records = [_record(content, kind) for content in json.loads(f"[{','.join(lines)}]")]
        if len(records) != json.loads(first)["num_samples"]:
            raise ValueError("lines are missing")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path} is damaged ({error}). Remove it and run the same command again; only this "
            "benchmark of this model is evaluated again."
        ) from error
    return records
