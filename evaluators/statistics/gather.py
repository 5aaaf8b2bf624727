"""Gather a model's statistics and write them as `nan_merge.data_statistics` reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from evaluators.backends.clip_checkpoints import save_tensors
from evaluators.statistics.fisher import Labels, fisher_diagonals
from evaluators.statistics.gram import gram_matrices
from nan_merge.data_statistics import FORMAT, STATISTICS_NAME
from nan_merge.errors import EvaluationError
from nan_merge.fingerprint import fingerprint
from nan_merge.methods.method import DataStatistic
from nan_merge.model_reference import open_model
from nan_merge.publish import publish_folder, write_text_atomically
from nan_merge.schema import StrictModel
from nan_merge.tasks import report_progress


class GatherRecipe(StrictModel):
    """How statistics are gathered from data."""

    num_examples: int = Field(default=256, gt=0)
    """Images, or texts, of each model's own training data; all if there are fewer."""
    batch_size: int = Field(default=32, gt=0)
    """Images that go through a model at once for Gram matrices; Fisher takes them one by one."""
    labels: Labels = "sampled"
    """For Fisher: labels drawn from the model's own predictions, or those that the data gives."""
    memory_bytes: int = Field(default=2 << 30, gt=0)
    """What the statistics may take in memory at once. What is larger is gathered in groups of
    tensors, each with a pass of the data of its own."""


@dataclass(frozen=True)
class Subject:
    """A model that is loaded, and the data that it is shown.

    Attributes:
        module: In evaluation mode, float32.
        prefix: What stands before its parameters' names in the checkpoint.
        batches: The data in batches, from the beginning each time.
        forward: Runs the model on a batch.
        examples: The data one by one, from the beginning each time.
        likelihood: The log-likelihood of an example.
        num_examples: How many there are.
    """

    module: nn.Module
    prefix: str
    batches: Callable[[], Iterator[Any]]
    forward: Callable[[Any], object]
    examples: Callable[[], Iterator[Any]]
    likelihood: Callable[[Any], Tensor]
    num_examples: int


def gather(
    kind: DataStatistic,
    subject: Subject,
    checkpoint: str,
    output: Path,
    *,
    memory_bytes: int,
    facts: Mapping[str, Any],
) -> None:
    """Gather statistics and publish their folder, whole or not at all.

    Args:
        kind: Which.
        subject: The model.
        checkpoint: Where its weights lie.
        output: The folder.
        memory_bytes: As in `GatherRecipe`.
        facts: What else ``statistics.json`` should say.

    Raises:
        EvaluationError: If the model has no parameter that the checkpoint holds.
        OutputError: If ``output`` is taken or cannot be written.
    """
    model = open_model(checkpoint, Path(checkpoint).name)
    told: dict[str, Any] = {"rows": {}, "inputs_first": []} if kind == "gram" else {}
    groups = _told(gram_groups(subject, memory_bytes, told), report_progress)
    if kind == "fisher":
        groups = _told(fisher_groups(subject, memory_bytes), report_progress)
    found = 0
    with publish_folder(output) as staging:
        for number, group in enumerate(groups, start=1):
            tensors = {name: each for name, each in group.items() if name in model.tensors}
            found += len(tensors)
            save_tensors(tensors, staging / f"statistics-{number:05d}.safetensors")
            tensors.clear()
        if not found:
            raise EvaluationError(
                f"{checkpoint}: its tensors are not called as the parameters of the model that was "
                f"loaded from it, such as {next(iter(model.tensors))}; nothing was gathered."
            )
        table = {
            "format": FORMAT,
            "kind": kind,
            "model": fingerprint(model),
            "num_examples": subject.num_examples,
            **told,
            **facts,
        }
        write_text_atomically(staging / STATISTICS_NAME, json.dumps(table, indent=1) + "\n")


def gram_groups(
    subject: Subject, memory_bytes: int, told: dict[str, Any]
) -> Iterator[dict[str, Tensor]]:
    """Gram matrices by the checkpoint's names; fills in ``rows`` and ``inputs_first``."""
    groups = gram_matrices(
        subject.module, subject.batches, subject.forward, memory_bytes=memory_bytes
    )
    for group in groups:
        named = {subject.prefix + name: each for name, each in group.items()}
        told["rows"] |= {name: each.rows for name, each in named.items()}
        told["inputs_first"] += [name for name, each in named.items() if each.inputs_first]
        means = {name: each.mean for name, each in named.items()}
        named.clear()
        yield means
        means.clear()  # before the next group is made


def fisher_groups(subject: Subject, memory_bytes: int) -> Iterator[dict[str, Tensor]]:
    """Fisher diagonals by the checkpoint's names."""
    groups = fisher_diagonals(
        subject.module, subject.examples, subject.likelihood, memory_bytes=memory_bytes
    )
    for group in groups:
        means = {subject.prefix + name: each for name, each in group.items()}
        yield means
        means.clear()  # before the next group is made


def _told(
    groups: Iterator[dict[str, Tensor]], report: Callable[[int], None]
) -> Iterator[dict[str, Tensor]]:
    for group in groups:
        report(sum(each.nbytes for each in group.values()))
        yield group
