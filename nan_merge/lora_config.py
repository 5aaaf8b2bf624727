"""What PEFT's ``adapter_config.json`` says about the arithmetic of a LoRA adapter."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nan_merge.errors import CheckpointError
from nan_merge.json_file import read_json_table

ADAPTER_CONFIG = "adapter_config.json"
# What changes the arithmetic, or the base itself, in ways that are not W + s·B·A.
UNSUPPORTED = (
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "arrow_config",
    "monteclora_config",
    "alora_invocation_tokens",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
)
BASE_CHANGING_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class LoraSettings:
    """What ``adapter_config.json`` says about the arithmetic."""

    path: Path
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    is_rank_stabilised: bool
    fan_in_fan_out: bool

    def rank_of(self, module: str) -> int:
        """Rank of a module's factors; patterns match the end of its name, as in PEFT."""
        return self.rank_pattern.get(_matching(self.path, self.rank_pattern, module), self.rank)

    def scale_of(self, module: str) -> float:
        """The factor s of B·A.

        Raises:
            CheckpointError: If the rank is not positive.
        """
        alpha = self.alpha_pattern.get(_matching(self.path, self.alpha_pattern, module), self.alpha)
        rank = self.rank_of(module)
        if rank < 1:
            raise CheckpointError(
                f"{self.path}: rank {rank} for {module}, expected at least 1. "
                "Save the adapter again."
            )
        return alpha / (math.sqrt(rank) if self.is_rank_stabilised else rank)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's ``adapter_config.json``.

    Raises:
        CheckpointError: If it is missing or no JSON table.
    """
    return read_json_table(folder / ADAPTER_CONFIG, "Save the adapter again.")


def read_lora_settings(folder: Path) -> LoraSettings:
    """The arithmetic of the adapter in a folder.

    Raises:
        CheckpointError: If the adapter is not W + s·B·A on the base as published.
    """
    path, config = folder / ADAPTER_CONFIG, read_adapter_config(folder)
    kind, bias = config.get("peft_type"), config.get("bias", "none")
    mend = "Merge it into its base with PEFT's `merge_and_unload()` and give the saved result."
    if str(kind).upper() != "LORA":
        raise CheckpointError(f"{path}: only LoRA adapters can be merged, this is {kind}. {mend}")
    if bias != "none":
        raise CheckpointError(f"{path}: `bias: {bias}` trains biases of the base too. {mend}")
    used = sorted(key for key in UNSUPPORTED if config.get(key))
    if used:
        kind = "a DoRA adapter" if used == ["use_dora"] else f"a LoRA with {', '.join(used)}"
        raise CheckpointError(f"{path}: {kind} is not W + s·B·A. {mend}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(BASE_CHANGING_STARTS):
        raise CheckpointError(
            f"{path}: `init_lora_weights: {start}` changed the base before training, so this "
            "adapter does not fit the base as published. Save it with `save_pretrained(..., "
            f"path_initial_model_for_weight_conversion=...)`. Or: {mend}"
        )
    try:
        return LoraSettings(
            path,
            int(config["r"]),
            float(config["lora_alpha"]),
            {str(key): int(rank) for key, rank in (config.get("rank_pattern") or {}).items()},
            {str(key): float(alpha) for key, alpha in (config.get("alpha_pattern") or {}).items()},
            bool(config.get("use_rslora")),
            bool(config.get("fan_in_fan_out")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged: `r`, `lora_alpha` or a pattern of them is missing or no number. "
            "Save the adapter again."
        ) from error


def _matching(path: Path, patterns: Mapping[str, object], module: str) -> str:
    """The first pattern that matches the whole end of a module's name, else the name."""
    for pattern in patterns:
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return pattern
        except re.error as error:
            raise CheckpointError(
                f"{path}: {pattern!r} is no regular expression. Save the adapter again."
            ) from error
    return module
