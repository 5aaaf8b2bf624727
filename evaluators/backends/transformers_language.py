"""Causal language models on transformers: batched, in float32 or bfloat16, on a CPU or a GPU.

Scoring pads on the right, where a causal model does not look; writing pads on the left, with
positions counted from each prompt's first token.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluators.backends.greedy import write_greedily
from evaluators.backends.language import Completion, PictureCompletion, PicturePrompt
from evaluators.backends.picture_processor import can_see, load_processor
from evaluators.backends.token_batches import batches, group_by_prefix
from evaluators.profiles import Decoding
from evaluators.rendering import end_token_ids, load_tokenizer, stop_token_ids
from nan_merge.errors import CheckpointError, EvaluationError, MissingExtraError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FEWEST_SHARED = 32
"""Tokens of a common prefix from which it is computed apart: below, the extra pass costs more."""


def open_transformers(
    folder: Path,
    *,
    dtype: str = "bfloat16",
    device: str = "auto",
    max_length: int | None = None,
    batch_tokens: int = 8192,
    reuse_prefixes: bool = True,
) -> TransformersLanguageModel:
    """Load a checkpoint.

    Args:
        folder: A checkpoint in transformers' layout. Its generation_config.json does not change
            how answers are written, but for the tokens that end them.
        dtype: "float32" or "bfloat16".
        device: "cpu", "cuda", or "auto": a GPU where there is one.
        max_length: Most tokens of a prompt and its continuation; by default what the model was
            made for.
        batch_tokens: Most tokens of a batch, padding included; what limits memory.
        reuse_prefixes: Whether a prefix that prompts share is computed once.

    Raises:
        CheckpointError: If the checkpoint cannot be loaded, or lacks tensors.
        EvaluationError: If the device is not there.
        MissingExtraError: If transformers is not installed.
    """
    place = _device(device)
    tokenizer = load_tokenizer(folder)
    sees = can_see(folder)
    processor = load_processor(folder) if sees else None
    model = _load(folder, DTYPES[dtype], sees).to(place).eval()
    model.requires_grad_(False)
    return TransformersLanguageModel(
        model,
        tokenizer,
        end_token_ids(tokenizer, folder),
        max_length or most_positions(model.config),
        batch_tokens,
        reuse_prefixes,
        processor,
    )


def most_positions(config: Any) -> int:
    """Tokens that a model was made for; what its config says, or 2048 where it says nothing."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        if isinstance(found := getattr(text, name, None), int) and found > 0:
            return found
    return 2048


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise EvaluationError("device: cuda was asked for, and torch sees no GPU here.")
    return torch.device(name)


def _load(folder: Path, dtype: torch.dtype, sees: bool = False) -> Any:
    try:
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
        from transformers.utils import logging
    except ImportError as error:
        raise MissingExtraError(
            "Language models need transformers: pip install 'nan-merge[language]'"
        ) from error
    logging.disable_progress_bar()
    try:
        kind: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        loaded: Any = kind.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises whatever its parts raise
        raise CheckpointError(f"{folder} cannot be loaded by transformers: {error}") from error
    model, loading = loaded
    # transformers would fill them with random numbers and only warn.
    absent = sorted(loading["missing_keys"]) + sorted(map(str, loading["mismatched_keys"]))
    if absent:
        shown = ", ".join(absent[:5]) + (" and more" if len(absent) > 5 else "")
        raise CheckpointError(
            f"{folder}: {len(absent)} tensors are missing or of another shape: {shown}. "
            "Merge it again, or fetch the checkpoint again."
        )
    return model


class TransformersLanguageModel:
    """A `LanguageModel` on transformers; make it with `open_transformers`."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        end_ids: Sequence[int],
        max_length: int,
        batch_tokens: int,
        reuse_prefixes: bool,
        processor: Any = None,
    ) -> None:
        self.max_length = max_length
        self._model: Any = model
        self._tokenizer, self._end_ids = tokenizer, tuple(end_ids)
        self._batch_tokens, self._reuse_prefixes = batch_tokens, reuse_prefixes
        self._processor = processor
        self._picks_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def generate(self, prompts: Sequence[Sequence[int]], decoding: Decoding) -> list[Completion]:
        """Write greedily; an answer that meets the end of the context is cut off.

        Raises:
            EvaluationError: If a prompt leaves no room, or the model's logits are not numbers.
        """
        self._check(prompts, [1] * len(prompts))
        found: dict[int, Completion] = {}
        end_ids = (*self._end_ids, *stop_token_ids(self._tokenizer, decoding.stop))
        lengths = [len(prompt) + decoding.max_tokens for prompt in prompts]
        for places in batches(range(len(prompts)), lengths, self._batch_tokens):
            rows = [prompts[place] for place in places]
            room = [self.max_length - len(row) for row in rows]
            written = write_greedily(self._model, self._tokenizer, rows, room, end_ids, decoding)
            found.update(zip(places, written, strict=True))
        return [found[place] for place in range(len(prompts))]

    def generate_about(
        self, prompts: Sequence[PicturePrompt], decoding: Decoding
    ) -> list[PictureCompletion]:
        """Write greedily about pictures; a prompt that does not fit is answered by None.

        Raises:
            EvaluationError: If the model cannot see, or its logits are not numbers.
        """
        if self._processor is None:
            raise EvaluationError("The model is no vision-language model.")
        from evaluators.backends.transformers_picture import write_about

        return write_about(
            self._model,
            self._processor,
            prompts,
            decoding,
            end_ids=(*self._end_ids, *stop_token_ids(self._tokenizer, decoding.stop)),
            max_length=self.max_length,
            batch_tokens=self._batch_tokens,
        )

    def next_token_log_probabilities(
        self, prompts: Sequence[Sequence[int]], token_ids: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Per prompt, natural log-probabilities of each of its ``token_ids`` as the next token."""
        self._check(prompts, [1] * len(prompts))
        found: list[list[float]] = [[] for _ in prompts]
        for place, rows in self._score(prompts, [1] * len(prompts)):
            found[place] = rows[0, list(token_ids[place])].tolist()
        return found

    def log_likelihoods(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[float]:
        """Per prompt, the summed natural log-probability of its continuation, given the prompt."""
        lengths = [len(continuation) for continuation in continuations]
        self._check(prompts, lengths)
        # The last token of a continuation is asked for, but nothing comes after it.
        rows = [
            [*prompt, *continuation[:-1]]
            for prompt, continuation in zip(prompts, continuations, strict=True)
        ]
        sums = [0.0] * len(rows)
        for place, scores in self._score(rows, lengths):
            asked = torch.tensor(continuations[place], device=scores.device)
            # float64: a sum of many tokens must not depend on how they are summed
            sums[place] = float(scores.gather(1, asked[:, None]).double().sum())
        return sums

    def close(self) -> None:
        """Give the memory back."""
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _check(self, prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> None:
        for prompt, length in zip(prompts, lengths, strict=True):
            if not prompt or not length:
                raise EvaluationError("A prompt or a continuation without tokens cannot be scored.")
            if len(prompt) + length > self.max_length:
                raise EvaluationError(
                    f"A prompt of {len(prompt)} tokens and {length} more do not fit into the "
                    f"model's context of {self.max_length} tokens."
                )

    @torch.inference_mode()
    def _score(
        self, rows: Sequence[Sequence[int]], num_last: Sequence[int]
    ) -> Iterator[tuple[int, Tensor]]:
        """Each row's place and float32 log-probabilities (num_last, vocabulary) at its end."""
        fewest = FEWEST_SHARED if self._reuse_prefixes else self.max_length + 1
        for group in group_by_prefix(rows, num_last, fewest):
            shared = group.num_shared
            lengths = [len(row) for row in rows]
            prefix = self._cache_of(rows[group.places[0]][:shared]) if shared else None
            for places in batches(group.places, lengths, self._batch_tokens):
                ends = [rows[place][shared:] for place in places]
                at, logits = self._logits(ends, [num_last[p] for p in places], prefix, shared)
                for row, place in enumerate(places):
                    last = range(len(ends[row]) - num_last[place], len(ends[row]))
                    picked = logits[row, [at[position] for position in last]]
                    yield place, picked.float().log_softmax(dim=-1)

    def _cache_of(self, tokens: Sequence[int]) -> Any:
        ids = torch.tensor([list(tokens)], device=self._model.device)
        keep = {"logits_to_keep": 1} if self._picks_logits else {}
        return self._model(input_ids=ids, use_cache=True, **keep).past_key_values

    def _logits(
        self,
        rows: Sequence[Sequence[int]],
        num_last: Sequence[int],
        prefix: Any,
        num_before: int,
    ) -> tuple[dict[int, int], Tensor]:
        """Logits of a batch where some row needs them, and where each position is found."""
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(list(row))
        wanted = sorted(
            {
                position
                for row, last in zip(rows, num_last, strict=True)
                for position in range(len(row) - last, len(row))
            }
        )
        device = self._model.device
        positions = torch.arange(num_before, num_before + longest, device=device)
        inputs: dict[str, Any] = {"input_ids": ids.to(device), "position_ids": positions[None]}
        if self._picks_logits:
            inputs["logits_to_keep"] = torch.tensor(wanted, device=device)
        if prefix is not None:
            inputs["past_key_values"] = _repeat(prefix, len(rows), device)
        logits = self._model(**inputs, use_cache=prefix is not None).logits
        if not self._picks_logits:
            logits = logits[:, wanted]
        return {position: at for at, position in enumerate(wanted)}, logits


def _repeat(cache: Any, times: int, device: torch.device) -> Any:
    """A cache of one row as one of many rows; the one given stays as it is."""
    copy = deepcopy(cache)
    copy.reorder_cache(torch.zeros(times, dtype=torch.int64, device=device))
    return copy
