"""Language models answer samples: what a model actor loads, and what it does with a shard.

All that crosses processes is here, and all of it can be pickled: options and shards go to an
actor, answers come back.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evaluators.answers import Answer
from evaluators.backends.language import Completion, LanguageModel
from evaluators.likelihood import compare_choices, render_choices
from evaluators.profiles import Decoding, Profile
from evaluators.rendering import (
    Prompt,
    Wording,
    check_chat_template,
    load_tokenizer,
    render,
    wording_of,
)
from evaluators.samples import Sample
from evaluators.shards import pack_shards
from nan_merge.errors import EvaluationError

Backend = Literal["vllm", "transformers"]
Dtype = Literal["float32", "bfloat16"]

# About so many samples go to a worker at a time: enough to keep an engine busy, few enough to lose
# little.
SAMPLES_PER_SHARD = 256
PICTURES_PER_SHARD = 64

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LanguageModelOptions:
    """How a language model is served.

    Attributes:
        backend: "vllm" or "transformers".
        dtype: "bfloat16" or "float32".
        device: For transformers, "cpu", "cuda", or "auto": a GPU where there is one. vLLM is
            built for one kind of device.
        max_length: Most tokens of a prompt and its answer together; by default the model's own.
        tensor_parallel: For vLLM, over how many GPUs a model is spread.
        batch_tokens: For transformers, most tokens of a batch, padding included.
        eager: For vLLM, whether it starts at once instead of compiling the model first; by default
            on a CPU.
        gpu_memory: For vLLM on a GPU, the share of its memory that it may take.
        kv_cache_gib: For vLLM on a CPU, GiB for the keys and values of what it has read.
    """

    backend: Backend = "vllm"
    dtype: Dtype = "bfloat16"
    device: str = "auto"
    max_length: int | None = None
    tensor_parallel: int = 1
    batch_tokens: int = 8192
    eager: bool | None = None
    gpu_memory: float = 0.9
    kv_cache_gib: int = 2


@dataclass(frozen=True)
class OpenLanguageModel:
    """A model that is ready to answer, and its tokenizer."""

    folder: Path
    model: LanguageModel
    tokenizer: Any

    def close(self) -> None:
        """Give back memory, processes and ports."""
        self.model.close()


@dataclass(frozen=True)
class LanguageShard:
    """Some samples of a profile; the unit of work of one model.

    Attributes:
        name: The profile's, e.g. "mmlu/oc-ppl".
        number: Which of the profile's shards.
        samples: What to ask; those that share a prefix follow each other.
        decoding: How answers are written; None if choices are compared.
        wording: How the pieces of a sample become one text.
    """

    name: str
    number: int
    samples: tuple[Sample, ...]
    decoding: Decoding | None
    wording: Wording

    def __str__(self) -> str:
        return f"{self.name}, shard {self.number}"

    @property
    def num_samples(self) -> int:
        """How many samples it has."""
        return len(self.samples)


def language_shards(
    profile: Profile,
    samples: Sequence[Sample],
    *,
    uses_chat_template: bool | None = None,
    num_samples: int | None = None,
) -> list[LanguageShard]:
    """Pack samples into shards, those with a common prefix together.

    Args:
        profile: How they are asked.
        samples: From ``profile.samples``, all or some.
        uses_chat_template: Instead of what the profile says.
        num_samples: Most samples of a shard; fewer where they show pictures if None.
    """
    has_pictures = any(sample.images for sample in samples)
    num_samples = num_samples or (PICTURES_PER_SHARD if has_pictures else SAMPLES_PER_SHARD)
    chat = profile.uses_chat_template if uses_chat_template is None else uses_chat_template
    wording = wording_of(profile, chat)
    places = pack_shards([profile.prefix_of(sample) for sample in samples], num_samples)
    return [
        LanguageShard(
            name=f"{profile.benchmark}/{profile.name}",
            number=number,
            samples=tuple(samples[place] for place in shard),
            decoding=profile.decoding,
            wording=wording,
        )
        for number, shard in enumerate(places)
    ]


def open_language_model(
    folder: str, options: LanguageModelOptions | None = None
) -> OpenLanguageModel:
    """Load a checkpoint in this process, and start its engine if it has one.

    Args:
        folder: A checkpoint in transformers' layout, tokenizer included.
        options: How it is served.

    Raises:
        CheckpointError: If the checkpoint cannot be loaded.
        EvaluationError: If the engine does not start; its own last words are in the message.
        MissingExtraError: If the backend is not installed.
    """
    options = options or LanguageModelOptions()
    path = Path(folder)
    tokenizer = load_tokenizer(path)
    if options.backend == "vllm":
        from evaluators.backends.vllm_language import open_vllm

        model: LanguageModel = open_vllm(
            path,
            dtype=options.dtype,
            max_length=options.max_length,
            tensor_parallel=options.tensor_parallel,
            eager=options.eager,
            gpu_memory=options.gpu_memory,
            kv_cache_gib=options.kv_cache_gib,
        )
    else:
        from evaluators.backends.transformers_language import open_transformers

        model = open_transformers(
            path,
            dtype=options.dtype,
            device=options.device,
            max_length=options.max_length,
            batch_tokens=options.batch_tokens,
        )
    return OpenLanguageModel(path, model, tokenizer)


def answer_shard(opened: OpenLanguageModel, shard: LanguageShard) -> list[Answer]:
    """Answer the samples of a shard, in their order.

    A prompt that is too long even without its shots is answered by nothing: an empty completion,
    finish reason "length", or log-probabilities that are None. It counts as an abstention.

    Raises:
        EvaluationError: If the chat template is missing or refuses the messages, or the model's
            logits are not numbers where an answer is written.
    """
    if shard.wording.uses_chat_template:
        check_chat_template(opened.tokenizer, opened.folder)
    if any(sample.images for sample in shard.samples):
        from evaluators.picture_evaluation import write_about_pictures

        return write_about_pictures(opened, shard)
    if shard.decoding is None:
        return _compare(opened, shard)
    return _write(opened, shard, shard.decoding)


def _compare(opened: OpenLanguageModel, shard: LanguageShard) -> list[Answer]:
    most = opened.model.max_length
    prompts = [
        render_choices(opened.tokenizer, sample, shard.wording, most) for sample in shard.samples
    ]
    _warn_if_too_long(shard, sum(prompt.longest > most for prompt in prompts), most)
    return compare_choices(opened.model, prompts)


def _write(opened: OpenLanguageModel, shard: LanguageShard, decoding: Decoding) -> list[Answer]:
    most = opened.model.max_length - 1  # room for one token of the answer
    prompts = [render(opened.tokenizer, each, shard.wording, most) for each in shard.samples]
    fitting = [place for place, each in enumerate(prompts) if 0 < len(each.token_ids) <= most]
    _warn_if_too_long(shard, len(prompts) - len(fitting), most)
    try:
        written = opened.model.generate([prompts[place].token_ids for place in fitting], decoding)
    except EvaluationError as error:
        raise EvaluationError(f"{opened.folder}, {shard}: {error}") from error
    completions = dict(zip(fitting, written, strict=True))
    nothing = Completion("", "length", 0)
    return [
        _answer(sample, prompt, completions.get(place, nothing))
        for place, (sample, prompt) in enumerate(zip(shard.samples, prompts, strict=True))
    ]


def _answer(sample: Sample, prompt: Prompt, completion: Completion) -> Answer:
    return Answer(
        sample_id=sample.id,
        prompt_digest=prompt.digest,
        completion=completion.text,
        finish_reason=completion.finish_reason,
        num_prompt_tokens=len(prompt.token_ids),
        num_tokens=completion.num_tokens,
        num_dropped_shots=prompt.num_dropped_shots,
    )


def _warn_if_too_long(shard: LanguageShard, num_samples: int, most_tokens: int) -> None:
    if num_samples:
        _logger.warning(
            "%s: %d of %d prompts are empty or longer than %d tokens, the model's context, even "
            "without solved examples; they count as abstentions.",
            shard,
            num_samples,
            shard.num_samples,
            most_tokens,
        )
