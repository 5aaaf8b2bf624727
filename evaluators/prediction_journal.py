"""Keep predictions as they come, so that a run that was killed asks only for what is missing.

One model's answers to one benchmark go to a journal beside their final place: JSON lines, appended
shard by shard and synced to the disk before the shard counts as done. When all are there, they
become the record that `evaluators.predictions` reads, in the order of the samples, and the journal
is removed. So the record has the same bytes whatever was interrupted on the way.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Generic, TypeVar

from evaluators.predictions import Record, parse_record, write_predictions
from nan_merge.publish import explain_write_errors, sync_path

R = TypeVar("R", bound=Record)


class PredictionJournal(Generic[R]):
    """The records of one model on one benchmark while they are made. One writer at a time."""

    def __init__(
        self,
        path: Path,
        key: str,
        sample_ids: Sequence[str],
        kind: type[R],
        known: Sequence[R] = (),
    ) -> None:
        """Take up the journal that an earlier run left, if it is of the same key.

        Args:
            path: Where the finished record goes.
            key: Of all that shapes the predictions.
            sample_ids: Of every sample of the benchmark, in its order.
            kind: Class of the records, e.g. `Prediction`.
            known: Records of some of the samples, made under the same key.
        """
        self.path = path
        self._kind = kind
        self._journal = path.with_name(f".{path.name}.partial")
        self._key, self.sample_ids = key, tuple(sample_ids)
        self._kept = {each.sample_id: each for each in known} | self._take_up()

    def missing(self, shards: Sequence[Sequence[int]]) -> list[int]:
        """Which shards, lists of places in the samples, are not answered in full."""
        kept = [sample_id in self._kept for sample_id in self.sample_ids]
        return [number for number, shard in enumerate(shards) if not all(kept[i] for i in shard)]

    @property
    def is_complete(self) -> bool:
        """Whether every sample is answered."""
        return all(sample_id in self._kept for sample_id in self.sample_ids)

    def keep(self, predictions: Sequence[R]) -> None:
        """Append the predictions of a shard, and write the record if they were the last ones.

        Raises:
            OutputError: If the disk is full or not writable.
        """
        self.append(predictions)
        if self.is_complete:
            self.finish()

    def append(self, predictions: Sequence[R]) -> None:
        """Keep the predictions of a shard; they are on the disk when this returns.

        Raises:
            OutputError: If the disk is full or not writable.
        """
        is_new = not self._journal.exists()
        with explain_write_errors(self._journal):
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            with self._journal.open("ab") as file:
                lines = [{"key": self._key}] if is_new else []
                lines += [asdict(prediction) for prediction in predictions]
                file.write(b"".join(_line(content) for content in lines))
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                sync_path(self._journal.parent)
        self._kept.update((each.sample_id, each) for each in predictions)

    def finish(self) -> list[R]:
        """Write the record, remove the journal, and return the predictions in their order.

        Raises:
            OutputError: If the disk is full or not writable.
        """
        predictions = [self._kept[sample_id] for sample_id in self.sample_ids]
        write_predictions(self.path, self._key, predictions)
        self._journal.unlink(missing_ok=True)
        return predictions

    def _take_up(self) -> dict[str, R]:
        """What an earlier run kept. A line that was cut off, and all after it, is dropped."""
        try:
            content = self._journal.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return {}
        kept: dict[str, R] = {}
        header, *lines = content.splitlines(keepends=True) or [b""]
        if header != _line({"key": self._key}):
            self._journal.unlink()
            return {}
        num_good = len(header)
        for line in lines:
            prediction = _parse(line, self._kind)
            if prediction is None:
                break
            kept[prediction.sample_id] = prediction
            num_good += len(line)
        if num_good < len(content):
            os.truncate(self._journal, num_good)
        return kept


def _line(content: Mapping[str, object]) -> bytes:
    return json.dumps(content).encode() + b"\n"  # ASCII: no letter in it ends a line


def _parse(line: bytes, kind: type[R]) -> R | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return parse_record(line, kind)
    except (ValueError, TypeError, AttributeError):
        return None
