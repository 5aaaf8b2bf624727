"""The processor of a vision-language model: what pictures become, and how many tokens they take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluators.backends.language import PicturePrompt
from nan_merge.errors import CheckpointError
from nan_merge.naming import read_config


def can_see(folder: Path) -> bool:
    """Whether a checkpoint is a vision-language model."""
    return isinstance(read_config(folder).get("vision_config"), dict)


def load_processor(folder: Path) -> Any:
    """Load a checkpoint's processor; code that lies in the checkpoint is never run.

    Raises:
        CheckpointError: If the folder has none, or one that needs code of its own.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever the processor's class makes of damaged files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{folder}: its image processor cannot be loaded: {reason} Copy processor_config.json "
            "and preprocessor_config.json, as far as it has them, from the base model."
        ) from error
    if not hasattr(processor, "image_processor"):
        raise CheckpointError(
            f"{folder} has no image processor. Copy processor_config.json and "
            "preprocessor_config.json, as far as it has them, from the base model."
        )
    return processor


def prompt_lengths(processor: Any, prompts: Sequence[PicturePrompt]) -> list[int]:
    """Tokens of each prompt with what its pictures become.

    Raises:
        CheckpointError: If the processor cannot take the pictures.
    """
    try:
        return [_length(processor, prompt) for prompt in prompts]
    except Exception as error:
        raise CheckpointError(
            f"The model's image processor fails: {error}. Its processor_config.json may lack "
            "patch_size, num_additional_image_tokens or vision_feature_select_strategy; copy it "
            "from the base model."
        ) from error


def process(processor: Any, prompts: Sequence[PicturePrompt]) -> Any:
    """What a model of transformers takes: a batch, padded on the left."""
    return processor(
        text=[prompt.text for prompt in prompts],
        images=[list(prompt.pictures) for prompt in prompts],
        add_special_tokens=False,
        padding=len(prompts) > 1,
        padding_side="left",
        return_tensors="pt",
    )


def _length(processor: Any, prompt: PicturePrompt) -> int:
    count = getattr(processor, "_get_num_multimodal_tokens", None)
    if count is None:  # then the whole work has to be done to know
        return int(process(processor, [prompt])["input_ids"].shape[1])
    sizes = [(picture.height, picture.width) for picture in prompt.pictures]
    tokens: list[int] = count(image_sizes=sizes)["num_image_tokens"]
    return len(prompt.token_ids) + sum(tokens) - len(tokens)
