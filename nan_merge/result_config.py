"""The config that a merge of vision-language models gets, and whether it fits the result."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nan_merge.checkpoint import Checkpoint
from nan_merge.errors import IncompatibleError
from nan_merge.json_file import read_json_table
from nan_merge.lora import config_folder
from nan_merge.missing import HEAD_NAMES
from nan_merge.naming import family_of, is_original_llava, read_config
from nan_merge.publish import write_text_atomically

if TYPE_CHECKING:
    from nan_merge.layout import AlignedTensor


def check_config(
    result: Checkpoint, reference: Checkpoint, tensors: Collection[AlignedTensor]
) -> None:
    """Refuse a config that cannot be written, or that asks for tensors which the result lacks.

    Args:
        result: The model whose config the result has.
        reference: The model whose tensors it has, if nothing else is said.
        tensors: What the result holds.

    Raises:
        IncompatibleError: If the config is that of the original LLaVA, or of another layout.
        CheckpointError: If ``config.json`` is damaged.
    """
    folder = config_folder(result)
    if not (folder / "config.json").is_file():
        return
    # The result takes it over, and changes it; better to hear of it before the merge.
    config = read_json_table(folder / "config.json", "Save or download the model again.")
    if is_original_llava(config):
        raise IncompatibleError(
            f"{result.name} ({folder}) has the config of the original LLaVA code, which neither "
            "transformers nor vLLM can read, and the result would have it. Let the result have "
            "that of a model in the hub's layout: as `base`, by its name with `config: NAME`, or "
            "of one that is not merged with `config: {path: ...}`; llava-hf on the hub has such "
            "copies of LLaVA's own models."
        )
    found = {tensor.name: tensor for tensor in tensors}
    problems = list(_unfit(result, reference, found))
    if problems:
        raise IncompatibleError(
            f"The result would not fit the config of {result.name}: {'; '.join(problems)}."
        )


def _unfit(
    result: Checkpoint, reference: Checkpoint, found: dict[str, AlignedTensor]
) -> Iterator[str]:
    has_taken = any(tensor.taken_from for tensor in found.values())
    if result is reference and not has_taken:
        return
    lacking = [
        name
        for name in result.tensors
        if name not in found and not any(fnmatchcase(name, head) for head in HEAD_NAMES)
    ]
    if lacking and result is not reference:
        more = f" and {len(lacking) - 1} more tensors" if len(lacking) > 1 else ""
        wish = f"`modules: {{{lacking[0]}: {result.name}}}`"
        yield f"it lacks {lacking[0]}{more}, which it can take with {wish}"
    for name, tensor in found.items():
        own = result.tensors.get(name)
        if own is not None and tensor.taken_from and own.shape != tensor.reference.shape:
            shape = tensor.reference.shape
            yield f"{name} of {tensor.taken_from} has shape {shape}, expected {own.shape}"


def write_head_ties(folder: Path, names: Collection[str]) -> None:
    """Let a vision-language model's config say whether the result has an output head of its own.

    transformers reads ``tie_word_embeddings`` at the top, where LLaVA-NeXT's config leaves it out
    even if its language model's says that head and embeddings are one: the head would be random.

    Args:
        folder: The result's, with its config.
        names: Of the tensors that it holds.
    """
    config = read_config(folder)
    if family_of(config) is None:
        return
    text: Any = config.get("text_config")
    text = text if isinstance(text, dict) else {}
    before = json.dumps(config)
    has_head = any(fnmatchcase(name, head) for name in names for head in HEAD_NAMES)
    if not has_head:
        config["tie_word_embeddings"] = True
        text["tie_word_embeddings"] = True
    elif not config.get("tie_word_embeddings") and text.get("tie_word_embeddings"):
        config["tie_word_embeddings"] = text["tie_word_embeddings"] = False
    if json.dumps(config) != before:
        content = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        write_text_atomically(folder / "config.json", content)
