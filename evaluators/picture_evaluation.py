"""Vision-language models answer questions about pictures: prompts, pictures, answers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.answers import Answer
from evaluators.backends.language import Completion, PictureCompletion, PicturePrompt
from evaluators.pictures import decode_picture, read_picture
from evaluators.rendering import Prompt, Wording, render, start_of_text
from evaluators.samples import Sample
from nan_merge.errors import EvaluationError
from nan_merge.naming import read_config

if TYPE_CHECKING:
    from evaluators.language_evaluation import LanguageShard, OpenLanguageModel

# Where configs of transformers say which tokens stand for a picture, or begin one.
_IMAGE_IDS = ("image_token_index", "image_token_id", "boi_token_index", "vision_start_token_id")
_logger = logging.getLogger(__name__)


def write_about_pictures(opened: OpenLanguageModel, shard: LanguageShard) -> list[Answer]:
    """Answer the samples of a shard, in their order; every picture is decoded once.

    Raises:
        EvaluationError: If the model cannot see, its chat template leaves pictures out, or
            likelihoods of choices are asked for.
        DataError: If a picture cannot be read.
    """
    if shard.decoding is None:
        raise EvaluationError(f"{shard}: likelihoods of choices are not compared about pictures.")
    most = opened.model.max_length
    prompts = [render(opened.tokenizer, each, shard.wording, most) for each in shard.samples]
    tokens = image_tokens(opened.tokenizer, opened.folder)
    for sample, prompt in zip(shard.samples, prompts, strict=True):
        _check_placeholders(sample, prompt, tokens, opened.folder)
    asked = _with_pictures(opened.tokenizer, shard.samples, prompts, shard.wording)
    try:
        written = opened.model.generate_about(asked, shard.decoding)
    except EvaluationError as error:
        raise EvaluationError(f"{opened.folder}, {shard}: {error}") from error
    num_lost = sum(each.completion is None for each in written)
    if num_lost:
        _logger.warning(
            "%s: %d of %d prompts are longer than %d tokens, the model's context; they count as "
            "abstentions.", shard, num_lost, shard.num_samples, most,
        )  # fmt: skip
    triples = zip(shard.samples, prompts, written, strict=True)
    return [_answer(sample, prompt, each) for sample, prompt, each in triples]


def image_tokens(tokenizer: Any, folder: Path) -> tuple[str, ...]:
    """What may stand for a picture in a prompt of a model.

    Raises:
        EvaluationError: If the model cannot see.
    """
    config = read_config(folder)
    ids = [config[key] for key in _IMAGE_IDS if isinstance(config.get(key), int)]
    if not ids or not isinstance(config.get("vision_config"), dict):
        raise EvaluationError(
            f"{folder} is no vision-language model: its config.json has no vision_config with the "
            "id of an image token. Ask it benchmarks without pictures."
        )
    return tuple(str(token) for token in tokenizer.convert_ids_to_tokens(ids) if token)


def check_sees(tokenizer: Any, folder: Path, sample: Sample, wording: Wording) -> None:
    """See before a model is loaded whether it can see and its chat template shows pictures.

    Raises:
        EvaluationError: If not, with what to do.
    """
    prompt = render(tokenizer, sample, wording, 1 << 30)
    _check_placeholders(sample, prompt, image_tokens(tokenizer, folder), folder)


def _check_placeholders(
    sample: Sample, prompt: Prompt, tokens: Sequence[str], folder: Path
) -> None:
    found = max((prompt.text.count(token) for token in tokens), default=0)
    if found < len(sample.images):
        raise EvaluationError(
            f"Sample {sample.id} shows {len(sample.images)} images, and its prompt for {folder} "
            f"has {found} of {', '.join(tokens)}: the chat template leaves images out. Copy "
            "chat_template.jinja, or chat_template.json, from the base model."
        )
    if found > len(sample.images):
        raise EvaluationError(
            f"Sample {sample.id}: its text holds {', '.join(tokens)} itself, which stands for an "
            "image. Remove it from the data."
        )


def _with_pictures(
    tokenizer: Any, samples: Sequence[Sample], prompts: Sequence[Prompt], wording: Wording
) -> list[PicturePrompt]:
    start = start_of_text(tokenizer, wording)
    decoded: dict[str, Any] = {}  # questions about one picture share it
    found: list[PicturePrompt] = []
    for sample, prompt in zip(samples, prompts, strict=True):
        for source in sample.images:
            if source.digest not in decoded:
                decoded[source.digest] = decode_picture(str(source), read_picture(source))
        pictures = tuple(decoded[source.digest] for source in sample.images)
        text = prompt.text if prompt.text.startswith(start) else start + prompt.text
        found.append(PicturePrompt(text, prompt.token_ids, pictures))
    return found


def _answer(sample: Sample, prompt: Prompt, written: PictureCompletion) -> Answer:
    completion = written.completion or Completion("", "length", 0)
    return Answer(
        sample_id=sample.id,
        prompt_digest=prompt.digest,
        completion=completion.text,
        finish_reason=completion.finish_reason,
        num_prompt_tokens=written.num_prompt_tokens,
        num_tokens=completion.num_tokens,
    )
