"""Random numbers that depend on the element they are for, and on nothing else.

A draw is decided by (seed, model, tensor, place of the element in the flattened tensor), so any
piece of a tensor can be drawn alone, by any worker, in any order. The generator is Philox4x32-10
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): its state is a counter,
which can be set to any place. The tests hold golden vectors, for a change in the stream would
change every merge that drops elements.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nan_merge.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


def stream_key(seed: int, model: str, tensor: str) -> tuple[int, int]:
    """Two 64-bit numbers that are the stream of one tensor of one model.

    The first is the generator's key, the second the upper half of its counter.

    Args:
        seed: Of the recipe; not negative.
        model: Name of the fine-tuned model in the recipe.
        tensor: Name of the tensor.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (str(seed), model, tensor):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    key = digest.digest()
    return int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")


def stream_keys(seed: int, models: Sequence[str], tensor: str) -> np.ndarray:
    """The keys of one tensor of T models: uint64, shape (T, 2)."""
    return np.array([stream_key(seed, model, tensor) for model in models], dtype=np.uint64)


def uniform(seed: int, model: str, tensor: str, start: int, count: int) -> Tensor:
    """Uniform numbers for the elements ``start`` to ``start + count`` of a flattened tensor.

    Each is the 24 leading bits of the element's own 32, times 2**-24: an exact float32 in [0, 1).

    Args:
        seed: Of the recipe; not negative.
        model: Name of the fine-tuned model in the recipe.
        tensor: Name of the tensor.
        start: Place of the first element.
        count: How many elements.

    Returns:
        Shape (count,), float32, on the CPU.
    """
    from nan_merge.kernels.philox import PER_STEP, fill_draws

    skipped = start % PER_STEP
    num_drawn = -(-(skipped + count) // PER_STEP) * PER_STEP
    drawn = np.empty(num_drawn, np.float32)
    fill_draws(*stream_key(seed, model, tensor), start - skipped, num_drawn, drawn)
    return torch.from_numpy(drawn[skipped : skipped + count])
