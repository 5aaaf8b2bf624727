"""PEFT LoRA adapters as models: the base's tensors, with W + s·B·A where the adapter acts.

The folder's layout, the names of the tensors and the meaning of ``adapter_config.json`` are
PEFT's (https://github.com/huggingface/peft, tuners/lora and utils/save_and_load.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nan_merge.checkpoint import Checkpoint, natural_key
from nan_merge.dtypes import DType
from nan_merge.errors import CheckpointError
from nan_merge.lora_config import LoraSettings, read_lora_settings
from nan_merge.lora_tensor import LoraTensor
from nan_merge.naming import hub_names, read_config
from nan_merge.pickled import convert_pickled
from nan_merge.safetensors_file import TensorInfo, read_header

__all__ = ["AdaptedCheckpoint", "LoraTensor", "config_folder", "open_adapter"]

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
MAX_LISTED_KEYS = 10
FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?:embedding_)?(?P<side>[AB])(?:\.(?!weight$)[^.]+)?(?:\.weight)?"
)


@dataclass(frozen=True)
class AdaptedCheckpoint(Checkpoint):
    """An adapter on its base.

    Attributes:
        name: How the model is called in messages and tables.
        folder: Where the adapter lies.
        files: All that decides its numbers: the base's files, the adapter's, its config.
        tensors: The base's names, as in any checkpoint.
        base: The model that it was trained on, whose config and tokenizer it needs.
    """

    base: Checkpoint


def config_folder(checkpoint: Checkpoint) -> Path:
    """Where a model's config and tokenizer lie: for an adapter, beside its base."""
    while isinstance(checkpoint, AdaptedCheckpoint):
        checkpoint = checkpoint.base
    return checkpoint.folder


def open_adapter(folder: Path, base: Checkpoint, name: str) -> AdaptedCheckpoint:
    """A LoRA adapter on its base, as a model. Only headers are read.

    Args:
        folder: PEFT's folder, with ``adapter_config.json`` and the adapter's weights.
        base: The model that it was trained on.
        name: What to call the two together.

    Raises:
        CheckpointError: If the adapter is missing, damaged, no LoRA, or acts on tensors that
            the base lacks; lists these.
    """
    settings = read_lora_settings(folder)
    weights = next((folder / file for file in ADAPTER_WEIGHTS if (folder / file).is_file()), None)
    if weights is None:
        raise CheckpointError(f"{folder} holds no {ADAPTER_WEIGHTS[0]}. Is it the right folder?")
    if weights.suffix == ".bin":
        weights = convert_pickled(weights)
    factors, replaced = _sort_keys(weights, read_header(weights))
    rename = _find_renaming(base, weights, [*replaced, *(f"{name}.weight" for name in factors)])
    tensors = dict(base.tensors)
    for key, tensor in replaced.items():
        tensors[rename(key)] = tensor
    for module, sides in factors.items():
        target = rename(f"{module}.weight")
        tensors[target] = _adapted(settings, module, tensors[target], sides, weights)
    ordered = dict(sorted(tensors.items(), key=lambda item: natural_key(item[0])))
    files = (*base.files, weights, settings.path)
    return AdaptedCheckpoint(name, folder, files, ordered, base)


def _sort_keys(
    weights: Path, stored: Mapping[str, TensorInfo]
) -> tuple[dict[str, dict[str, TensorInfo]], dict[str, TensorInfo]]:
    """The adapter's tensors: module -> side A or B -> factor, and name -> whole tensor."""
    factors: dict[str, dict[str, TensorInfo]] = {}
    replaced: dict[str, TensorInfo] = {}
    for key, tensor in stored.items():
        name = _plain_name(key)
        found = FACTOR.fullmatch(name)
        # PEFT 0.21 applies the adapter inside torch's MultiheadAttention (`base_layer.out_proj`)
        # twice, in training too; other versions may not.
        is_nested = found is not None and ".base_layer." in key
        if is_nested or (found is None and re.search(r"\.(lora_|trainable_tokens_)", name)):
            raise CheckpointError(
                f"{weights}: tensor {key} belongs to an adapter that is not W + s·B·A. Merge it "
                "into its base by `merge_and_unload()` of the PEFT that trained it, and give the "
                "saved result."
            )
        sides = factors.setdefault(found["module"], {}) if found else replaced
        place = found["side"] if found else name
        if place in sides:
            raise CheckpointError(
                f"{weights} holds two tensors for {name}: {sides[place].name} and {key}. "
                "Save one adapter alone, with `save_pretrained(..., selected_adapters=[...])`."
            )
        sides[place] = tensor
    halves = sorted(module for module, sides in factors.items() if len(sides) != 2)
    if halves:
        raise CheckpointError(
            f"{weights} is incomplete: {halves[0]} has only one of lora_A and lora_B "
            f"({len(halves)} such modules). Save the adapter again."
        )
    return factors, replaced


def _plain_name(key: str) -> str:
    """An adapter's key without what PEFT wraps around the names of the base's modules.

    >>> _plain_name("base_model.model.score.modules_to_save.default.weight")
    'score.weight'
    """
    parts = key.removeprefix("base_model.model.").split(".")
    if "modules_to_save" in parts[:-1]:
        place = parts.index("modules_to_save")
        # The adapter's name follows, unless only the parameter's name does.
        del parts[place : place + (2 if place + 2 < len(parts) else 1)]
    return ".".join(part for part in parts if part != "base_layer")


def _find_renaming(base: Checkpoint, weights: Path, names: list[str]) -> Callable[[str], str]:
    """How the adapter's names become the base's: as they are, or with a prefix less or more.

    Checkpoints are stored with and without the name of the inner model (``h.0.attn`` and
    ``transformer.h.0.attn``); one renaming must fit all names.
    """
    prefixes = dict.fromkeys(name.split(".")[0] for name in base.tensors)
    config = read_config(config_folder(base))

    renamings: list[Callable[[str], str]] = [lambda name: name, lambda name: name.partition(".")[2]]
    renamings.append(lambda name: hub_names(config, [name])[name])
    renamings += [lambda name, prefix=prefix: f"{prefix}.{name}" for prefix in prefixes]
    misses = [[name for name in names if rename(name) not in base.tensors] for rename in renamings]
    if not names or all(misses):
        lost = min(misses, key=len, default=[])
        listed = ", ".join(sorted(lost)[:MAX_LISTED_KEYS])
        more = f" and {len(lost) - MAX_LISTED_KEYS} more" if len(lost) > MAX_LISTED_KEYS else ""
        raise CheckpointError(
            f"{weights} acts on {len(lost)} of {len(names)} tensors that its base {base.folder} "
            f"lacks: {listed}{more}. Give the base that the adapter was trained on (a head tied to "
            "the embeddings, or added for training, must be stored in it under its own name)."
        )
    return renamings[misses.index([])]


def _adapted(
    settings: LoraSettings,
    module: str,
    base: TensorInfo,
    sides: Mapping[str, TensorInfo],
    weights: Path,
) -> LoraTensor:
    a, b, scale = sides["A"], sides["B"], settings.scale_of(module)
    rank, inputs = a.shape[0] if a.shape else 0, math.prod(a.shape[1:])
    outputs, columns = math.prod(b.shape[:1]), math.prod(b.shape[1:])
    size = (base.shape[0], math.prod(base.shape[1:])) if base.shape else (1, 1)
    straight = size == (outputs, inputs)
    transposed = size == (inputs, outputs)
    expected = settings.rank_of(module)
    if not rank == columns == expected or not (straight or transposed):
        raise CheckpointError(
            f"{weights}: {module} has lora_A {a.shape} and lora_B {b.shape}, which do not fit "
            f"rank {expected} and {base.name} of shape {base.shape} ({base.path}). "
            "Give the base that the adapter was trained on."
        )
    if not all(tensor.dtype.is_floating_point for tensor in (base, a, b)):
        raise CheckpointError(
            f"{base.name}: {base.path} holds {base.dtype}, {weights} {a.dtype} and {b.dtype}. "
            "An adapter acts on floating-point weights; give the base before quantisation."
        )
    # A square weight fits both ways; else its shape says more than the config, which speaks for
    # all modules at once.
    is_embedding = ".lora_embedding_" in a.name
    turned = (is_embedding or settings.fan_in_fan_out) if straight and transposed else transposed
    wide = DType.F64 in (base.dtype, a.dtype, b.dtype)
    dtype = DType.F64 if wide else DType.F32
    return LoraTensor(base.name, str(weights), dtype, base.shape, 0, base, a, b, scale, turned)
