"""What a model answered, sample by sample; written once, read by every score and comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nan_merge.errors import DataError
from nan_merge.publish import write_text_atomically


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


def write_predictions(path: Path, key: str, predictions: Sequence[Prediction]) -> None:
    """Write predictions as JSON lines, headed by a line with the key of what made them."""
    lines = [json.dumps({"key": key, "num_samples": len(predictions)})]
    lines += [json.dumps(asdict(prediction), ensure_ascii=False) for prediction in predictions]
    write_text_atomically(path, "\n".join(lines) + "\n")


def read_key(path: Path) -> str | None:
    """The key that predictions were written under, or None if there are none."""
    try:
        with path.open(encoding="utf-8") as file:
            return json.loads(file.readline()).get("key")
    except (OSError, ValueError, AttributeError):
        return None


def read_predictions(path: Path) -> list[Prediction]:
    """Read what `write_predictions` wrote.

    Raises:
        DataError: If the file is missing, cut short or edited into nonsense.
    """
    try:
        # Not splitlines: JSON leaves U+2028 and its like in strings as they are.
        first, *lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        predictions = [Prediction(**json.loads(line)) for line in lines]
        if len(predictions) != json.loads(first)["num_samples"]:
            raise ValueError("lines are missing")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} is damaged ({error}). Remove it and run the same command again; only this "
            "benchmark of this model is evaluated again."
        ) from error
    return predictions
