"""Multiple choice by likelihood: which choice does a model think the likeliest continuation?

Where the choices differ in one last token, one request for the log-probabilities of those tokens
takes the place of one request per choice. That they do is proven for every sample on its own
tokens. What the choices have in common gives every one the same factor, so both ways rank them
alike; OpenCompass' perplexity over the whole prompt
(``opencompass/openicl/icl_inferencer/icl_ppl_inferencer.py``) does, too, where the choices have
equally many tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from evaluators.answers import Answer, FinishReason
from evaluators.backends.language import LanguageModel
from evaluators.rendering import Prompt, Wording, encode, prompt_text
from evaluators.samples import Sample
from nan_merge.errors import EvaluationError


@dataclass(frozen=True)
class ChoicePrompt:
    """A prompt and its choices in tokens.

    Attributes:
        sample_id: The sample's.
        prompt: The text without a choice; its token ids are those that all choices share, which
            need not be those of the text alone: a tokenizer may join its end to the choice.
        endings: Per choice, the tokens that follow; at least one.
        longest: Tokens of the prompt with its longest choice.
    """

    sample_id: str
    prompt: Prompt
    endings: tuple[tuple[int, ...], ...]
    longest: int

    @property
    def is_one_request(self) -> bool:
        """Whether the choices differ in one last token alone."""
        return all(len(ending) == 1 for ending in self.endings)


def render_choices(
    tokenizer: Any, sample: Sample, wording: Wording, max_length: int
) -> ChoicePrompt:
    """Make the prompt of a sample with choices; shots that do not fit are left out, last first.

    Args:
        tokenizer: From `load_tokenizer`.
        sample: What to ask; it has choices.
        wording: How its pieces become one text.
        max_length: Most tokens of the prompt and its longest choice. The prompt is longer only
            if it is too long without any shots.

    Raises:
        EvaluationError: If nothing comes before the choices, or the chat template refuses.
    """
    dropped = 0
    while True:
        text = prompt_text(tokenizer, sample, wording, len(sample.shots) - dropped)
        rows = encode(tokenizer, [text + choice for choice in sample.choices], wording)
        longest = max(map(len, rows))
        if longest <= max_length or dropped == len(sample.shots):
            break
        dropped += 1
    shared = _num_shared(rows)
    if shared == 0:
        raise EvaluationError(
            f"Sample {sample.id}: its choices share no token to go on from, so they cannot be "
            "compared. Its prompt must not be empty."
        )
    return ChoicePrompt(
        sample.id,
        Prompt(text, tuple(rows[0][:shared]), dropped),
        tuple(tuple(row[shared:]) for row in rows),
        longest,
    )


def _num_shared(rows: list[list[int]]) -> int:
    """Tokens with which all rows begin; one at least is left over in each."""
    most = min(map(len, rows)) - 1
    low, high = min(rows), max(rows)  # in dictionary order: what these two share, all share
    return next((at for at in range(most) if low[at] != high[at]), most)


def compare_choices(
    model: LanguageModel, prompts: Sequence[ChoicePrompt], *, by_one_request: bool = True
) -> list[Answer]:
    """Ask a model for the log-probabilities of all choices.

    Args:
        model: Whom to ask.
        prompts: From `render_choices`.
        by_one_request: Whether one request per prompt may do. Otherwise there is always one for
            each choice; both ways give the same but for rounding.

    Returns:
        One answer per prompt. Log-probabilities that are not finite are None; so are those of
        prompts that are too long for the model, whose finish reason is then "length".
    """
    fitting = [place for place, each in enumerate(prompts) if each.longest <= model.max_length]
    one = [at for at in fitting if by_one_request and prompts[at].is_one_request]
    several = sorted(set(fitting) - set(one))
    found: dict[int, list[float]] = {}
    if one:
        rows = model.next_token_log_probabilities(
            [prompts[at].prompt.token_ids for at in one],
            [[ending[0] for ending in prompts[at].endings] for at in one],
        )
        found.update(zip(one, rows, strict=True))
    if several:
        sums = model.log_likelihoods(
            [prompts[at].prompt.token_ids for at in several for _ in prompts[at].endings],
            [ending for at in several for ending in prompts[at].endings],
        )
        cuts = accumulate((len(prompts[at].endings) for at in several), initial=0)
        for at, (start, stop) in zip(several, pairwise(cuts), strict=True):
            found[at] = sums[start:stop]
    return [_answer(prompt, found.get(place)) for place, prompt in enumerate(prompts)]


def _answer(prompt: ChoicePrompt, found: Sequence[float] | None) -> Answer:
    values = found if found is not None else [math.nan] * len(prompt.endings)
    reason: FinishReason = "choice" if found is not None else "length"
    return Answer(
        sample_id=prompt.sample_id,
        prompt_digest=prompt.prompt.digest,
        completion="",
        finish_reason=reason,
        log_probabilities=tuple(value if math.isfinite(value) else None for value in values),
        num_prompt_tokens=len(prompt.prompt.token_ids),
        num_dropped_shots=prompt.prompt.num_dropped_shots,
    )
