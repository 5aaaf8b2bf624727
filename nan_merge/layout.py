"""What the result holds: the same tensor in every input, and the files that tensors go to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from nan_merge.checkpoint import layer_of
from nan_merge.dtypes import DType
from nan_merge.safetensors_file import TensorInfo


@dataclass(frozen=True)
class AlignedTensor:
    """The same tensor in every input.

    Attributes:
        name: Tensor's name.
        base: In the base model, if there is one.
        finetuned: In each fine-tuned model, in the recipe's order.
        taken_from: Whose it is, if it is taken as it is: then all inputs are that one tensor.
    """

    name: str
    base: TensorInfo | None
    finetuned: tuple[TensorInfo, ...]
    taken_from: str | None = None

    @property
    def reference(self) -> TensorInfo:
        """What the result looks like: the base's tensor, else the first model's."""
        return self.base or self.finetuned[0]

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The base's tensor, if any, then the models'."""
        return (self.base, *self.finetuned) if self.base else self.finetuned

    @property
    def is_merged(self) -> bool:
        """Whether it holds floating-point numbers that are not taken from one model.

        Others are copied: what is taken as it is, the rest if all models agree.
        """
        return self.taken_from is None and self.reference.dtype.is_floating_point

    @property
    def input_bytes(self) -> int:
        """Bytes that must be read to merge it."""
        return sum(tensor.num_bytes for tensor in self.inputs)

    def output_dtype(self, dtype: DType | None) -> DType:
        """Its type in the result, if floats are asked to be ``dtype``."""
        is_float = self.reference.dtype.is_floating_point
        return dtype if dtype is not None and is_float else self.reference.stored_dtype


@dataclass(frozen=True)
class ShardPlan:
    """One file of the result.

    Attributes:
        file_name: e.g. ``model-00001-of-00003.safetensors``.
        tensors: What it holds, in order.
        dtype: Type of its floating-point tensors; each keeps its own if None.
    """

    file_name: str
    tensors: tuple[AlignedTensor, ...]
    dtype: DType | None

    @property
    def num_bytes(self) -> int:
        """Bytes of data that it will hold."""
        return sum(output_bytes(tensor, self.dtype) for tensor in self.tensors)

    @property
    def input_bytes(self) -> int:
        """Bytes that must be read to write it."""
        return sum(tensor.input_bytes for tensor in self.tensors)


def output_bytes(tensor: AlignedTensor, dtype: DType | None) -> int:
    """Bytes of one tensor in the result."""
    return tensor.reference.num_elements * tensor.output_dtype(dtype).itemsize


def pack_shards(
    tensors: Sequence[AlignedTensor], dtype: DType | None, shard_bytes: int
) -> Iterator[ShardPlan]:
    """Put whole layers into files of at most ``shard_bytes``; a larger layer has its own file.

    The packing depends on nothing but the names, shapes and types, so that the same merge always
    gives the same files.
    """
    packed: list[list[AlignedTensor]] = [[]]
    filled = 0
    for _, group in groupby(tensors, key=lambda tensor: layer_of(tensor.name)):
        layer = list(group)
        layer_bytes = sum(output_bytes(tensor, dtype) for tensor in layer)
        if packed[-1] and filled + layer_bytes > shard_bytes:
            packed.append([])
            filled = 0
        packed[-1].extend(layer)
        filled += layer_bytes
    for number, shard in enumerate(packed, start=1):
        name = f"model-{number:05d}-of-{len(packed):05d}" if len(packed) > 1 else "model"
        yield ShardPlan(f"{name}.safetensors", tuple(shard), dtype)
