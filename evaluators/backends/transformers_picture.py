"""Vision-language models on transformers: write greedily about pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from evaluators.backends.greedy import NOT_NUMBERS, added_text
from evaluators.backends.language import Completion, PictureCompletion, PicturePrompt
from evaluators.backends.picture_processor import process, prompt_lengths
from evaluators.backends.token_batches import batches
from evaluators.profiles import Decoding
from nan_merge.errors import EvaluationError


def write_about(
    model: Any,
    processor: Any,
    prompts: Sequence[PicturePrompt],
    decoding: Decoding,
    *,
    end_ids: Sequence[int],
    max_length: int,
    batch_tokens: int,
) -> list[PictureCompletion]:
    """Write greedily, by `generate` of the model's own class, which knows its positions.

    Args:
        model: Of `AutoModelForImageTextToText`.
        processor: The model's.
        prompts: What to write about.
        decoding: How.
        end_ids: Tokens that end an answer.
        max_length: Most tokens of a prompt and its answer together.
        batch_tokens: Most tokens of a batch, padding included.

    Raises:
        EvaluationError: If the logits are not numbers.
    """
    lengths = prompt_lengths(processor, prompts)
    found = [PictureCompletion(None, length) for length in lengths]
    fitting = [place for place, length in enumerate(lengths) if length < max_length]
    most = [length + decoding.max_tokens for length in lengths]
    can_pad = processor.tokenizer.pad_token_id is not None
    groups = batches(fitting, most, batch_tokens) if can_pad else [[place] for place in fitting]
    for places in groups:
        room = min(max_length - lengths[place] for place in places)
        asked = [prompts[place] for place in places]
        completions = _write(model, processor, asked, decoding, end_ids, room)
        for place, completion in zip(places, completions, strict=True):
            found[place] = PictureCompletion(completion, lengths[place])
    return found


@torch.inference_mode()
def _write(
    model: Any,
    processor: Any,
    prompts: Sequence[PicturePrompt],
    decoding: Decoding,
    end_ids: Sequence[int],
    room: int,
) -> list[Completion]:
    from transformers import GenerationConfig, LogitsProcessorList

    inputs = process(processor, prompts).to(model.device)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            inputs[name] = value.to(model.dtype)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=min(decoding.max_tokens, room),
        eos_token_id=list(end_ids) or None,
        pad_token_id=processor.tokenizer.pad_token_id or 0,
    )
    # The checkpoint's own would fill in what is not said here.
    model.generation_config = config
    written = model.generate(
        **inputs,
        generation_config=config,
        logits_processor=LogitsProcessorList([_refuse_no_numbers]),
    )
    num_before = inputs["input_ids"].shape[1]
    rows = zip(inputs["input_ids"], inputs["attention_mask"], written, strict=True)
    return [
        _completion(processor.tokenizer, ids[mask.bool()].tolist(), row[num_before:].tolist(),
                    end_ids, decoding)
        for ids, mask, row in rows
    ]  # fmt: skip


def _refuse_no_numbers(input_ids: Tensor, scores: Tensor) -> Tensor:
    if not bool(scores.isfinite().all()):
        raise EvaluationError(NOT_NUMBERS)
    return scores


def _completion(
    tokenizer: Any,
    prompt: Sequence[int],
    tokens: list[int],
    end_ids: Sequence[int],
    decoding: Decoding,
) -> Completion:
    """What was written, without padding, the token that ended it, and what follows a stop."""
    end = next((at for at, token in enumerate(tokens) if token in end_ids), None)
    text = added_text(tokenizer, prompt, tokens[:end])
    stop = min((at for each in decoding.stop if (at := text.find(each)) >= 0), default=None)
    ended = end is not None or stop is not None
    num_tokens = len(tokens) if end is None else end + 1
    return Completion(text[:stop], "stop" if ended else "length", num_tokens)
