"""A checkpoint: a folder of safetensors files with its config. Only headers are read here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nan_merge.errors import CheckpointError
from nan_merge.hub import resolve_folder
from nan_merge.naming import hub_names, read_config
from nan_merge.pickled import PICKLED_SUFFIXES, convert_pickled, pickled_files
from nan_merge.safetensors_file import TensorInfo, read_header
from nan_merge.weight_index import indexed_files

INDEX_NAME = "model.safetensors.index.json"
# In the layout of transformers and in that of open_clip; a folder that has both is the former.
OPEN_CLIP_WEIGHTS, OPEN_CLIP_CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
WHOLE_MODELS = ("model.safetensors", OPEN_CLIP_WEIGHTS)


@dataclass(frozen=True)
class Checkpoint:
    """What the headers of one model say.

    Attributes:
        name: How the model is called in messages and tables.
        folder: Where it lies.
        files: Its safetensors files, sorted.
        tensors: Name -> place, sorted by name so that numbers count (layer 2 before layer 10). A
            vision-language model's names are the hub's, whatever its files call them.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]
    tensors: dict[str, TensorInfo]

    @property
    def is_open_clips(self) -> bool:
        """Whether the folder is in open_clip's layout, which knows no shards."""
        own = self.files[0].name.startswith("open_clip_") if self.files else False
        has_config = (self.folder / OPEN_CLIP_CONFIG).is_file()
        return own or (has_config and not (self.folder / "config.json").is_file())

    @property
    def num_parameters(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.num_elements for tensor in self.tensors.values())


def open_checkpoint(path: str, name: str | None = None) -> Checkpoint:
    """Read the headers of a checkpoint.

    Args:
        path: A folder, one safetensors file, or a hub id (``org/model`` or ``org/model@revision``).
        name: What to call it; the folder's name if absent.

    Raises:
        CheckpointError: If there is none, it is damaged, or only pickled weights are there.
    """
    folder = resolve_folder(path)
    if not folder.is_file() and not folder.is_dir():
        raise CheckpointError(f"{path} is neither a folder nor a file of weights.")
    files = (_single_file(folder),) if folder.is_file() else _weight_files(folder)
    if folder.is_file():
        folder = folder.parent
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for tensor_name, tensor in read_header(file).items():
            if tensor_name in tensors:
                raise CheckpointError(
                    f"{folder}: tensor {tensor_name!r} is in both {tensors[tensor_name].path} and "
                    f"{file}. Remove the file that does not belong to the checkpoint."
                )
            tensors[tensor_name] = tensor
    return Checkpoint(name or folder.name, folder, files, _in_hub_names(folder, tensors))


def _in_hub_names(folder: Path, tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Tensors under the names that `nan_merge.naming` gives them, sorted."""
    found: dict[str, TensorInfo] = {}
    for stored, name in hub_names(read_config(folder), list(tensors)).items():
        if name in found:
            raise CheckpointError(
                f"{folder}: tensors {found[name].name!r} and {stored!r} are both {name} by the "
                "naming of the hub. Remove the one that does not belong to the checkpoint."
            )
        found[name] = tensors[stored]
    return dict(sorted(found.items(), key=lambda item: natural_key(item[0])))


def _single_file(path: Path) -> Path:
    return convert_pickled(path) if path.suffix in PICKLED_SUFFIXES else path


def _weight_files(folder: Path) -> tuple[Path, ...]:
    index = folder / INDEX_NAME
    if index.is_file():
        return indexed_files(index, ".safetensors")
    for name in WHOLE_MODELS:
        if (folder / name).is_file():
            return (folder / name,)
    found = sorted(folder.glob("*.safetensors"))
    if found:
        return tuple(found)
    if pickled := pickled_files(folder):
        return tuple(convert_pickled(file) for file in pickled)
    raise CheckpointError(f"{folder} holds no *.safetensors file. Is it the right folder?")


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which numbers inside names count: layer 2 comes before layer 10."""
    parts = re.split(r"(\d+)", name)
    # Digits are compared by length, then as text: `int` refuses numbers of thousands of digits.
    return tuple(
        (0, len(part.lstrip("0")), part.lstrip("0")) if part.isdecimal() else (1, 0, part)
        for part in parts
        if part
    )


def layer_of(tensor_name: str) -> str:
    """The name's prefix through its first number, or the whole name if it has none.

    >>> layer_of("model.layers.11.mlp.up_proj.weight")
    'model.layers.11'
    """
    parts = tensor_name.split(".")
    for position, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[: position + 1])
    return tensor_name
