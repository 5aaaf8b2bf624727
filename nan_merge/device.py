"""Where the arithmetic of a merge is done: the one place that knows about CUDA.

No path through a GPU has been run yet; the same torch functions are tested on the CPU.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from nan_merge.errors import ConfigError
from nan_merge.lazy_torch import torch

Device = Literal["auto", "cpu", "cuda"]
DRIVER = Path("/proc/driver/nvidia/version")


def chosen_device(wanted: Device) -> Literal["cpu", "cuda"]:
    """The device that `auto` comes to here, or the one that was asked for.

    Raises:
        ConfigError: If CUDA was asked for and torch finds none.
    """
    if wanted == "cpu" or (wanted == "auto" and not _may_have_cuda()):
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        raise ConfigError(
            "`device: cuda`, but torch finds no CUDA device here. Use `device: auto` or `cpu`, or "
            "install a torch with CUDA and check `nvidia-smi`."
        )
    return "cpu"


def _may_have_cuda() -> bool:
    """Whether it is worth importing torch to ask: its import takes longer than a small merge."""
    return DRIVER.exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1")
