"""Write greedily with a transformers model: the likeliest token, again and again, for a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evaluators.backends.language import Completion
from evaluators.profiles import Decoding
from nan_merge.errors import EvaluationError

NOT_NUMBERS = (
    "The model's logits are not numbers (NaN or infinite): its weights are damaged. "
    "Look at them with `nan-merge inspect`, and merge again."
)
_TAIL_TOKENS = 8  # more than a stop string has characters: a token may have none
_CONTEXT_TOKENS = 6  # of the prompt: whether a text begins with a space depends on what is before


@dataclass
class _Writing:
    """One answer while it is written."""

    prompt: Sequence[int]
    room: int
    tokens: list[int] = field(default_factory=list[int])
    completion: Completion | None = None


@torch.inference_mode()
def write_greedily(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    room: Sequence[int],
    end_ids: Sequence[int],
    decoding: Decoding,
) -> list[Completion]:
    """Write answers to a batch of prompts, padded on the left.

    Args:
        model: A transformers causal language model.
        tokenizer: Its tokenizer.
        prompts: Token ids.
        room: Per prompt, most new tokens that the context has room for.
        end_ids: Tokens that end an answer.
        decoding: Most new tokens, and strings that end an answer.

    Raises:
        EvaluationError: If the logits are not finite.
    """
    answers = [
        _Writing(prompt, min(most, decoding.max_tokens))
        for prompt, most in zip(prompts, room, strict=True)
    ]
    active, cache = answers, None
    ids, mask = _pad_left(prompts, model.device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    while True:
        outputs = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        largest, chosen = outputs.logits[:, -1].max(dim=-1)  # NaN, if there is one
        if not bool(largest.isfinite().all()):
            raise EvaluationError(NOT_NUMBERS)
        for answer, token in zip(active, chosen.tolist(), strict=True):
            if answer.completion is None:
                _append(answer, token, tokenizer, end_ids, decoding.stop)
        going = [row for row, answer in enumerate(active) if answer.completion is None]
        if not going:
            return [answer.completion for answer in answers if answer.completion is not None]
        cache, ids, positions = outputs.past_key_values, chosen[:, None], positions[:, -1:] + 1
        if 2 * len(going) <= len(active):  # those that are done cost as much as the others
            rows = torch.tensor(going, device=mask.device)
            cache.reorder_cache(rows)
            ids, positions, mask = ids[rows], positions[rows], mask[rows]
            active = [active[row] for row in going]
        mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)


def _pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, int64 (n, longest). What stands in the padding is never looked at."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, longest - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def _append(
    answer: _Writing, token: int, tokenizer: Any, end_ids: Sequence[int], stops: Sequence[str]
) -> None:
    """Add a token, and find out whether it ends the answer."""
    answer.tokens.append(token)
    if token in end_ids:
        text = added_text(tokenizer, answer.prompt, answer.tokens[:-1])
        answer.completion = Completion(text, "stop", len(answer.tokens))
        return
    if stops:
        longest = max(map(len, stops)) + _TAIL_TOKENS
        tail = tokenizer.decode(answer.tokens[-longest:], skip_special_tokens=True)
        if any(stop in tail for stop in stops):
            text = added_text(tokenizer, answer.prompt, answer.tokens)
            cut = min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))
            answer.completion = Completion(text[:cut], "stop", len(answer.tokens))
            return
    if len(answer.tokens) == answer.room:
        text = added_text(tokenizer, answer.prompt, answer.tokens)
        answer.completion = Completion(text, "length", len(answer.tokens))


def added_text(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """What the tokens add to the prompt's text; some tokenizers drop a space at the beginning."""
    before = list(prompt[-_CONTEXT_TOKENS:])
    context = tokenizer.decode(before, skip_special_tokens=True)
    whole = tokenizer.decode([*before, *tokens], skip_special_tokens=True)
    text = tokenizer.decode(list(tokens), skip_special_tokens=True)
    if whole.startswith(context):
        text = whole[len(context) :]
    return text.rstrip("\ufffd")  # bytes of a character that is not complete; vLLM omits them, too
