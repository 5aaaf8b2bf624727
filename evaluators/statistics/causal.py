"""Statistics of causal language models on texts: exercises, or lines of a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from evaluators.statistics.fisher import log_likelihood
from evaluators.statistics.gather import GatherRecipe, Subject, gather
from evaluators.training.causal import IGNORED, encode_exercise
from evaluators.training.exercises import Exercise
from nan_merge.errors import DataError, MissingExtraError
from nan_merge.fingerprint import digest_text
from nan_merge.methods.method import DataStatistic
from nan_merge.tasks import report_progress


class TextGatherRecipe(GatherRecipe):
    """How statistics of language models are gathered."""

    max_tokens: int = Field(default=256, gt=1)
    """Longer texts are cut off at their end."""


def read_texts(path: Path) -> list[Exercise]:
    """Texts of a JSON Lines file: each line a string, or a table with `prompt` and `answer`.

    Raises:
        DataError: If the file is missing, or a line is neither.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    return [_text_of(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _text_of(path: Path, number: int, line: str) -> Exercise:
    try:
        content: Any = json.loads(line)
        if isinstance(content, str):
            return Exercise("", content)
        return Exercise(str(content.get("prompt", "")), str(content["answer"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{path}, line {number}: neither a text in quotes nor {{"prompt": ..., "answer": ...}}.'
        ) from error


def gather_causal_statistics(
    kind: DataStatistic,
    model: str,
    texts: Sequence[Exercise],
    recipe: TextGatherRecipe,
    seed: int,
    output: str,
) -> None:
    """Task body: gather the statistics of one language model.

    Every token of prompt and answer counts for Gram matrices, those of the answer for Fisher.

    Args:
        kind: Which statistics.
        model: Folder of its checkpoint with its tokenizer.
        texts: What it is shown; the first ``recipe.num_examples``.
        recipe: How to gather.
        seed: Draws labels.
        output: Folder to write.

    Raises:
        MissingExtraError: If transformers is not installed.
        NanMergeError: If something cannot be read or written.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError(
            "Language models need transformers: pip install 'nan-merge[language]'"
        ) from error
    torch.set_num_threads(1)
    tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=True)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        model, local_files_only=True, dtype="float32"
    )
    chosen = texts[: recipe.num_examples]
    rows = [encode_exercise(tokenizer, each, recipe.max_tokens) for each in chosen]
    subject = causal_subject(loaded, rows, recipe, seed)
    data = digest_text(json.dumps([[each.prompt, each.answer] for each in chosen]))
    facts = {"data": data, "seed": seed, "labels": recipe.labels}
    gather(kind, subject, model, Path(output), memory_bytes=recipe.memory_bytes, facts=facts)


def causal_subject(
    model: Any, rows: Sequence[tuple[Tensor, Tensor]], recipe: TextGatherRecipe, seed: int
) -> Subject:
    """A language model and token ids with labels, both int64 (length,); one text at a time."""
    draws = torch.Generator()

    def examples() -> Iterator[tuple[Tensor, Tensor]]:
        draws.manual_seed(seed)  # every pass draws the same labels
        for ids, labels in rows:
            report_progress(ids.nbytes)
            yield ids, labels

    def likelihood(example: tuple[Tensor, Tensor]) -> Tensor:
        ids, labels = example
        logits = model(input_ids=ids[None]).logits[0, :-1].float()
        counted = labels[1:] != IGNORED
        return log_likelihood(logits[counted], labels[1:][counted], recipe.labels, draws)

    return Subject(
        model.eval(),
        "",
        batches=examples,  # texts are of many lengths, and padding would count
        forward=lambda example: model(input_ids=example[0][None]),
        examples=examples,
        likelihood=likelihood,
        num_examples=len(rows),
    )
