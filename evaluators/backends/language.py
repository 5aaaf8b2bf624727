"""What every backend for language models does; vLLM and transformers are behind it.

Prompts are token ids, made by `evaluators.rendering` with the checkpoint's own tokenizer, so that
no backend can tokenise in a way of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from evaluators.profiles import Decoding


@dataclass(frozen=True)
class Completion:
    """What a model wrote.

    Attributes:
        text: Decoded without special tokens; stop string excluded.
        finish_reason: "stop" or "length".
        num_tokens: Tokens written.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    num_tokens: int


@dataclass(frozen=True)
class PicturePrompt:
    """A prompt that shows pictures.

    Attributes:
        text: As rendered, one placeholder a picture, with what the tokenizer puts before it.
        token_ids: Of the same.
        pictures: Decoded, PIL images in RGB, in the order of the placeholders.
    """

    text: str
    token_ids: tuple[int, ...]
    pictures: tuple[Any, ...]


@dataclass(frozen=True)
class PictureCompletion:
    """What a model wrote about pictures.

    Attributes:
        completion: The same as without pictures; None if the prompt did not fit.
        num_prompt_tokens: Of the prompt, with what the pictures become.
    """

    completion: Completion | None
    num_prompt_tokens: int


class LanguageModel(Protocol):
    """A loaded causal language model.

    All methods take any number of prompts and batch them as they find best; results come in the
    order of the prompts and do not depend on the batch beyond rounding.
    """

    max_length: int
    """Most tokens of a prompt and its continuation together."""

    def generate(self, prompts: Sequence[Sequence[int]], decoding: Decoding) -> list[Completion]:
        """Write greedily."""
        ...

    def generate_about(
        self, prompts: Sequence[PicturePrompt], decoding: Decoding
    ) -> list[PictureCompletion]:
        """Write greedily about pictures; only models that can see do."""
        ...

    def next_token_log_probabilities(
        self, prompts: Sequence[Sequence[int]], token_ids: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Per prompt, natural log-probabilities of each of its ``token_ids`` as the next token."""
        ...

    def log_likelihoods(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[float]:
        """Per prompt, the summed natural log-probability of its continuation, given the prompt."""
        ...

    def close(self) -> None:
        """Give back memory, processes and ports."""
        ...
