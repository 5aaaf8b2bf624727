"""Pickled weights (``*.bin``, ``*.pt``, ``*.pth``): converted to safetensors once, then read.

A pickle is a program. Only torch's restricted reader opens one here: it builds tensors and plain
containers, and stops at the first name that it does not know, without importing it.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from nan_merge.dtypes import DType, dtype_of
from nan_merge.errors import CheckpointError
from nan_merge.lazy_torch import torch
from nan_merge.publish import explain_write_errors, partial_path, sync_path
from nan_merge.safetensors_file import make_header
from nan_merge.weight_index import indexed_files

if TYPE_CHECKING:
    from torch import Tensor

PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
PICKLED_INDEX = "pytorch_model.bin.index.json"
WHOLE_PICKLES = ("pytorch_model.bin", "open_clip_pytorch_model.bin")
# What training leaves beside the weights.
NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state", "scaler", "random_states")
NESTED_KEYS = ("state_dict", "model_state_dict", "model")
WRAPPING_PREFIXES = ("module.", "_orig_mod.")
CHUNK_BYTES = 64 << 20


def pickled_files(folder: Path) -> tuple[Path, ...]:
    """The pickled weights of a folder; empty if there are none.

    Raises:
        CheckpointError: If shards are missing, or it is not clear which file is the model.
    """
    index = folder / PICKLED_INDEX
    if index.is_file():
        return indexed_files(index, ".bin")
    for name in WHOLE_PICKLES:
        if (folder / name).is_file():
            return (folder / name,)
    found = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in PICKLED_SUFFIXES and not path.name.startswith(NO_WEIGHTS)
    )
    if len(found) > 1:
        raise CheckpointError(
            f"{folder} holds {len(found)} pickled files and no {PICKLED_INDEX}: "
            f"{', '.join(path.name for path in found)}. Give the path of the one to merge."
        )
    return tuple(found)


def convert_pickled(path: Path) -> Path:
    """The safetensors form of a pickled file, made at the first call and kept in the user's cache.

    It is found again under the file's path, size, modification time and inode. Every name has
    its own bytes in it, also where the pickle shares storage between names.

    Raises:
        CheckpointError: If the file is damaged, asks for code to be run, or holds no state dict
            of tensors that can be merged.
        OutputError: If the cache's disk is full or not writable.
    """
    # Not at the top: `fingerprint` imports `checkpoint`, which opens pickled folders with this.
    from nan_merge.fingerprint import cache_path, digest_text

    before = _version(path)
    versions = cache_path().parent / "converted" / digest_text(str(path.resolve()))[:24]
    converted = versions / before / f"{path.stem}.safetensors"
    if converted.is_file():
        return converted
    state_dict = _load_state_dict(path)
    with explain_write_errors(converted):
        converted.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(converted)
        try:
            _write(path, state_dict, partial)
            if _version(path) != before:
                raise CheckpointError(f"{path} changed while it was read. Run it again.")
            partial.replace(converted)
            sync_path(converted.parent)
        finally:
            partial.unlink(missing_ok=True)
        for other in versions.iterdir():
            if other.name != before:  # of an older content of the same file
                shutil.rmtree(other, ignore_errors=True)
    return converted


def _version(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"


def _load_state_dict(path: Path) -> dict[str, Tensor]:
    content = _load(path)
    if isinstance(content, Mapping) and not _has_tensors(content):
        # A training checkpoint: the weights lie beside the optimizer, the epoch and so on.
        nested = (content.get(key) for key in NESTED_KEYS)
        content = next((found for found in nested if isinstance(found, Mapping)), content)
    if not isinstance(content, Mapping) or not _has_tensors(content):
        raise CheckpointError(
            f"{path} holds no state dict (names and tensors, at the top or under one of "
            f"{', '.join(NESTED_KEYS)}). {_mend(path)}"
        )
    state_dict: dict[str, Tensor] = {}
    for name, value in cast("Mapping[Any, Any]", content).items():
        if isinstance(value, torch.Tensor):
            state_dict[str(name)] = value.detach()
        elif isinstance(value, Mapping) and _has_tensors(value):
            raise CheckpointError(f"{path}: {name!r} is a table of tensors itself. {_mend(path)}")
    for prefix in WRAPPING_PREFIXES:  # of DataParallel and of torch.compile
        if all(name.startswith(prefix) for name in state_dict):
            state_dict = {name.removeprefix(prefix): value for name, value in state_dict.items()}
    return dict(sorted(state_dict.items()))


def _has_tensors(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, torch.Tensor) for value in content.values())


def _load(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's hints on what is refused below anyway
            return _load_restricted(path)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        named = f" (it names {wanted[1]})" if wanted else ""
        raise CheckpointError(
            f"{path} asks for code to be run when it is opened{named}, or is no file of weights, "
            f"so it was not opened. {_mend(path)}"
        ) from error
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from error
    except Exception as error:  # a hostile or cut file fails wherever it likes
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} is a TorchScript archive, a program, so it was not opened. {_mend(path)}"
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} is damaged, or not a file of weights: {reason} Download or save it again."
        ) from error


def _load_restricted(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        # Files of torch before 1.6 cannot be mapped; they are read into memory instead.
        if "mmap can only be used" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)


def _mend(path: Path) -> str:
    return (
        "If you trust where it comes from, convert it once where its code is installed: "
        f"`state = torch.load('{path.name}', weights_only=False)`, then "
        "`safetensors.torch.save_model(state, 'model.safetensors')` if that is a module, or "
        "`safetensors.torch.save_file(state, ...)` if it is a state dict; and give the result."
    )


def _write(source: Path, state_dict: Mapping[str, Tensor], target: Path) -> None:
    """Write tensor by tensor: what is mapped leaves memory again when the system needs it."""
    layout = [
        (name, _checked_dtype(source, name, tensor), tuple(tensor.shape))
        for name, tensor in state_dict.items()
    ]
    with target.open("wb") as file:
        file.write(make_header(layout))
        for tensor in state_dict.values():
            data = tensor.contiguous().view(-1).view(torch.uint8).numpy()
            for start in range(0, len(data), CHUNK_BYTES):
                file.write(data[start : start + CHUNK_BYTES].data)
        file.flush()
        os.fsync(file.fileno())


def _checked_dtype(source: Path, name: str, tensor: Tensor) -> DType:
    dtype = dtype_of(tensor)
    if tensor.layout != torch.strided or tensor.is_quantized or dtype is None:
        raise CheckpointError(
            f"{source}: tensor {name!r} is {tensor.layout} of {tensor.dtype}, which cannot be "
            f"merged. Convert it to one of {', '.join(sorted(DType.__members__))} first."
        )
    # Strides of zero let a file of a few bytes name a tensor that fills the disk.
    if tensor.device.type != "cpu" or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise CheckpointError(
            f"{source}: tensor {name!r} of shape {tuple(tensor.shape)} has less data than its "
            "shape says. Save the checkpoint again."
        )
    return dtype
