"""What a language model answered to one sample: made once, scored as often as anyone likes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "choice", "unknown"]


@dataclass(frozen=True)
class Answer:
    """The record of one inference; nothing in it depends on how it is scored.

    Attributes:
        sample_id: The sample's.
        prompt_digest: First 16 hexadecimal digits of the SHA-256 of the prompt's text.
        completion: What the model wrote, stop string excluded; "" where choices were compared.
        finish_reason: "stop": it ended by itself or at a stop string; "length": it was cut off
            after the most tokens allowed, or never begun because the prompt was too long;
            "choice": choices were compared; "unknown": another program wrote the answer down, but
            not how it ended.
        log_probabilities: Natural logarithms, one per choice, in their order; empty if it wrote.
            NaN of the model is kept as null and scored as an abstention.
        num_prompt_tokens: Tokens of the prompt.
        num_tokens: Tokens written.
        num_dropped_shots: Solved examples left out because the context was too short.
    """

    sample_id: str
    prompt_digest: str
    completion: str
    finish_reason: FinishReason
    log_probabilities: tuple[float | None, ...] = ()
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    num_dropped_shots: int = 0

    @property
    def is_missing(self) -> bool:
        """Whether the model said nothing that could be scored.

        Its prompt was longer than the context even without solved examples, or its
        log-probabilities were not numbers.
        """
        if self.finish_reason == "choice":
            return None in self.log_probabilities
        return self.finish_reason == "length" and self.num_tokens == 0
