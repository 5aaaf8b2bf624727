"""Read and write pieces of safetensors files without mapping or loading them whole.

The format (https://github.com/huggingface/safetensors#format): 8 bytes, the little-endian length
of a JSON header; the header, name -> {dtype, shape, data_offsets}; then the data, without holes.
A header comes from strangers, so nothing in it is believed before it is checked against the file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from nan_merge.aligned import PAGE, aligned_empty
from nan_merge.dtypes import DType
from nan_merge.errors import CheckpointError
from nan_merge.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor

# The limit of the reference implementation; a larger header is a broken or hostile file.
MAX_HEADER_BYTES = 100_000_000
# What a reader keeps of tensors that are computed from others: a few factors and cells of each.
MAX_REMEMBERED_BYTES = 32 << 20


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies.

    Attributes:
        name: Tensor's name.
        path: File that holds it.
        dtype: Its type on disk.
        shape: Its shape.
        offset: First byte of its data, from the start of the file.
    """

    name: str
    path: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int

    @property
    def num_elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Size of the data in bytes."""
        return self.num_elements * self.dtype.itemsize

    @property
    def stored_dtype(self) -> DType:
        """Type that the model keeps it in, and so its type in a result that names none."""
        return self.dtype

    def read_from(self, reader: BlockReader, start: int, count: int) -> Tensor:
        """Elements of the flattened tensor; tensors computed from others override it."""
        return reader.read(self, start, count)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """List the tensors of a safetensors file, in the order of their data.

    Raises:
        CheckpointError: If the file is missing, cut short, or its header contradicts itself or
            the file's size.
    """
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            header_bytes = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or header_bytes > min(MAX_HEADER_BYTES, file_bytes - 8):
                raise _damaged(path, "its header is longer than the file: the file was cut short")
            header = _parse_header(path, file.read(header_bytes))
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    data_start = 8 + header_bytes
    tensors = [_tensor_info(path, name, entry, data_start) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.num_bytes))
    _check_layout(path, tensors, data_start, file_bytes)
    return {tensor.name: tensor for tensor in tensors}


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {reason}. Download or save it again.")


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise _damaged(path, "its header names a tensor twice")
        return dict(pairs)

    try:
        header: Any = json.loads(text, object_pairs_hook=refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is not JSON; it may not be a safetensors file") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a table of tensors")
    entries = cast("dict[str, Any]", header)
    entries.pop("__metadata__", None)
    return entries


def _tensor_info(path: Path, name: str, entry: Any, data_start: int) -> TensorInfo:
    try:
        code, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise _damaged(path, f"its header does not describe tensor {name!r}") from error
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
        raise _damaged(path, f"its header gives tensor {name!r} an impossible shape or place")
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise _damaged(path, f"it names a tensor {name!r}, which is no text")
    if not isinstance(code, str) or code not in DType.__members__:
        raise CheckpointError(
            f"{path}: tensor {name!r} has type {code}, which cannot be merged. "
            f"Convert the checkpoint to one of {', '.join(sorted(DType.__members__))} first."
        )
    dtype = DType[code]
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise _damaged(path, f"tensor {name!r} has another size than its shape says")
    return TensorInfo(name, str(path), dtype, tuple(shape), data_start + begin)


def _check_layout(
    path: Path, tensors: Sequence[TensorInfo], data_start: int, file_bytes: int
) -> None:
    position = data_start
    for tensor in tensors:
        if tensor.offset != position:
            raise _damaged(path, f"the data of tensor {tensor.name!r} overlaps or leaves a hole")
        position += tensor.num_bytes
    if position > file_bytes:
        missing = position - file_bytes
        raise _damaged(path, f"{missing:,} bytes are missing at its end: the file was cut short")
    if position < file_bytes:
        raise _damaged(path, f"it ends with {file_bytes - position:,} bytes that nothing describes")


class BlockReader:
    """Reads pieces of tensors, keeping the files open. Use as a context manager."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}
        self._buffers: dict[int, np.ndarray] = {}
        self._remembered: dict[Hashable, Tensor] = {}
        self._lock = Lock()

    def __enter__(self) -> BlockReader:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        self._buffers.clear()
        self._remembered.clear()

    def read(
        self, tensor: TensorInfo, start: int = 0, count: int | None = None, slot: int | None = None
    ) -> Tensor:
        """Elements ``start`` to ``start + count`` of the flattened tensor, in its own type.

        Args:
            tensor: What to read.
            start: First element.
            count: Number of elements; all that follow if None.
            slot: Read into memory that the next read with the same slot will use again: fresh
                memory costs as much as the reading. None for memory of its own.

        Returns:
            Shape (count,), on the CPU.

        Raises:
            CheckpointError: If the file has shrunk since its header was read.
        """
        count = tensor.num_elements - start if count is None else count
        if count == 0:
            return torch.empty(0, dtype=tensor.dtype.torch)
        if type(tensor) is TensorInfo:
            data = self.read_stored(tensor, start, count, slot)
            return torch.from_numpy(data).view(tensor.dtype.torch)
        return tensor.read_from(self, start, count)

    def read_stored(
        self,
        tensor: TensorInfo,
        start: int,
        count: int,
        slot: int | None = None,
        into: np.ndarray | None = None,
    ) -> np.ndarray:
        """The bytes of elements ``start`` to ``start + count``, as they lie in a file.

        Args:
            tensor: What to read; one that is computed from others is computed.
            start: First element.
            count: Number of elements.
            slot: As for `read`.
            into: Memory to read into, if elements lie in a file; at least as large as they are.

        Returns:
            uint8, shape (bytes,).
        """
        num_bytes = count * tensor.dtype.itemsize
        if type(tensor) is not TensorInfo:
            if not count:
                return np.empty(0, np.uint8)
            computed = tensor.read_from(self, start, count)
            return computed.contiguous().view(-1).view(torch.uint8).numpy()
        if into is None:
            into = self._buffer(slot, num_bytes)
        self._fill(tensor, into[:num_bytes].data, tensor.offset + start * tensor.dtype.itemsize)
        return into[:num_bytes]

    def _buffer(self, slot: int | None, num_bytes: int) -> np.ndarray:
        buffer = self._buffers.get(slot) if slot is not None else None
        if buffer is None or len(buffer) < num_bytes:
            buffer = aligned_empty((num_bytes,), np.uint8)
            if slot is not None:
                self._buffers[slot] = buffer
        return buffer

    def remember(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What ``make`` gives, computed again only after it was unused for a while."""
        with self._lock:
            found = self._remembered.pop(key, None)
        found = make() if found is None else found
        with self._lock:
            kept = self._remembered
            kept[key] = found
            # The oldest come first; what was just asked for stays, whatever its size.
            while len(kept) > 1 and sum(t.nbytes for t in kept.values()) > MAX_REMEMBERED_BYTES:
                kept.pop(next(iter(kept)))
        return found

    def _fill(self, tensor: TensorInfo, view: memoryview, offset: int) -> None:
        try:
            descriptor = self._descriptors.get(tensor.path)
            if descriptor is None:
                descriptor = os.open(tensor.path, os.O_RDONLY)
                self._descriptors[tensor.path] = descriptor
            while view:
                num_read = os.preadv(descriptor, [view], offset)
                if num_read == 0:
                    raise CheckpointError(
                        f"{tensor.path} ends inside tensor {tensor.name!r}: it changed or was cut "
                        "short while it was read. Restore it and run the same command again."
                    )
                view, offset = view[num_read:], offset + num_read
        except OSError as error:
            message = f"Cannot read tensor {tensor.name!r} from {tensor.path}: {error.strerror}."
            raise CheckpointError(message) from error


def make_header(tensors: Sequence[tuple[str, DType, tuple[int, ...]]]) -> bytes:
    """The bytes before the data of a file that holds these tensors in this order.

    Padded with spaces, as the format allows, so that the data starts where a page does.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, dtype, shape in tensors:
        end = position + math.prod(shape) * dtype.itemsize
        entries[name] = {
            "dtype": dtype.name,
            "shape": list(shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    return len(text).to_bytes(8, "little") + text


def tensor_bytes(tensor: Tensor) -> bytes:
    """The data of a contiguous CPU tensor of any type, as it is stored in a file."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
