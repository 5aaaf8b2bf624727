"""Statistics of a model that were made from data: Gram matrices for RegMean, Fisher diagonals.

They are checkpoints of their own: a folder of safetensors files whose tensors are called as the
model's, and beside them

    statistics.json   {"format": 1, "kind": "gram" or "fisher", "model": fingerprint of the model,
                       "num_examples": how many it saw, "inputs_first": [names], ...}

A Gram matrix has shape (inputs, inputs) and is a mean over the rows that a weight was multiplied
with, `X^T X / rows`; of the weights under `inputs_first` the first axis meets the inputs (x @ W),
of all others the last (a linear layer). A Fisher diagonal has the shape of its tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nan_merge.checkpoint import Checkpoint, open_checkpoint
from nan_merge.errors import CheckpointError, ConfigError, IncompatibleError
from nan_merge.json_file import read_json_table
from nan_merge.methods.method import DataStatistic
from nan_merge.row_mapped import RowMappedTensor
from nan_merge.safetensors_file import TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

    from nan_merge.layout import AlignedTensor
    from nan_merge.recipe import MergeRecipe

STATISTICS_NAME = "statistics.json"
FORMAT = 1
MEND = "Gather the statistics again."
CALLED = {"gram": "Gram matrices", "fisher": "Fisher diagonals"}
SYMMETRY_TOLERANCE = 1e-3  # of the largest entry


@dataclass(frozen=True)
class DataStatistics:
    """What one folder of statistics holds; only headers are read.

    Attributes:
        kind: Of what kind they are.
        model: Fingerprint of the model that they belong to.
        checkpoint: Where the tensors lie.
        inputs_first: Names of weights whose first axis meets the inputs.
        facts: All of ``statistics.json``.
    """

    kind: DataStatistic
    model: str
    checkpoint: Checkpoint
    inputs_first: frozenset[str]
    facts: dict[str, Any] = field(default_factory=dict[str, Any])


def open_data_statistics(path: str, name: str) -> DataStatistics:
    """Read the headers of a folder of statistics.

    Args:
        path: The folder.
        name: The model that they are said to be of.

    Raises:
        CheckpointError: If there are none, or they are damaged.
    """
    folder = Path(path)
    if not (folder / STATISTICS_NAME).is_file():
        raise CheckpointError(
            f"{name}: {folder} holds no {STATISTICS_NAME}, so it is no folder of statistics. "
            "`nan-merge run` gathers them where a method needs them."
        )
    facts = read_json_table(folder / STATISTICS_NAME, MEND)
    kind, model, inputs_first = facts.get("kind"), facts.get("model"), facts.get("inputs_first", [])
    is_listed = isinstance(inputs_first, list) and all(isinstance(n, str) for n in inputs_first)
    if facts.get("format") != FORMAT or kind not in CALLED or not isinstance(model, str):
        raise CheckpointError(f"{folder / STATISTICS_NAME} is no table of statistics. {MEND}")
    if not is_listed:
        raise CheckpointError(
            f"{folder / STATISTICS_NAME}: `inputs_first` is no list of names. {MEND}"
        )
    return DataStatistics(
        kind, model, open_checkpoint(str(folder), name), frozenset(inputs_first), facts
    )


def statistics_of(
    recipe: MergeRecipe, wanted: DataStatistic, tensors: Sequence[AlignedTensor]
) -> tuple[DataStatistics, ...]:
    """Open the statistics of every model of a recipe and see that they fit its tensors.

    Args:
        recipe: The merge.
        wanted: The kind that its method reads.
        tensors: What is merged.

    Raises:
        ConfigError: If a model names none.
        CheckpointError: If some cannot be read.
        IncompatibleError: If they are of another kind, or do not fit the tensors.
    """
    if without := [model.name for model in recipe.models if model.statistics is None]:
        raise ConfigError(
            f"Method {recipe.method.name} reads {CALLED[wanted]}, but {', '.join(without)} "
            f"{'names' if len(without) == 1 else 'name'} none. Give every model "
            "`statistics: FOLDER`; `nan-merge run` gathers what is missing by itself."
        )
    found = tuple(open_data_statistics(str(m.statistics), m.name) for m in recipe.models)
    for each in found:
        if each.kind != wanted:
            raise IncompatibleError(
                f"{each.checkpoint.folder} holds {CALLED[each.kind]}, but method "
                f"{recipe.method.name} reads {CALLED[wanted]}."
            )
    merged = {tensor.name: tensor for tensor in tensors if tensor.is_merged}
    problems = [p for tensor in merged.values() for p in _problems_of(tensor, found)]
    if not any(name in each.checkpoint.tensors for each in found for name in merged):
        problems = ["they name no tensor of the models"]
    if problems:
        raise IncompatibleError(
            f"The {CALLED[wanted]} do not fit the models: {'; '.join(problems[:10])}"
            f"{f'; and {len(problems) - 10} more' if len(problems) > 10 else ''}. {MEND}"
        )
    return found


def _problems_of(tensor: AlignedTensor, found: Sequence[DataStatistics]) -> list[str]:
    infos = [each.checkpoint.tensors.get(tensor.name) for each in found]
    if not any(infos):
        return []  # it is averaged
    name, problems = tensor.name, list[str]()
    if found[0].kind == "fisher" and any(isinstance(i, RowMappedTensor) for i in tensor.inputs):
        return [
            f"{name} is merged by token, as tokenizers differ, and Fisher diagonals keep the rows "
            "of their model; bring all models to one vocabulary first"
        ]
    first = [name in each.inputs_first for each in found]
    if len(set(first)) > 1:
        problems.append(f"they do not agree which axis of {name} meets the inputs")
    for each, info in zip(found, infos, strict=True):
        expected = _expected_shape(each, tensor)
        if info is None:
            problems.append(f"those of {each.checkpoint.name} lack {name}, which others have")
        elif not info.dtype.is_floating_point:
            problems.append(f"{info.path} holds {name} as {info.dtype}")
        elif info.shape != expected:
            problems.append(f"{info.path} has {name} as {info.shape} instead of {expected}")
    return problems


def _expected_shape(statistics: DataStatistics, tensor: AlignedTensor) -> tuple[int, ...]:
    shape = tensor.reference.shape
    if statistics.kind == "fisher":
        return shape
    if len(shape) != 2:
        return ()  # which no Gram matrix has
    width = shape[0] if tensor.name in statistics.inputs_first else shape[1]
    return width, width


def refuse_foreign(statistics: DataStatistics, fingerprint: str) -> None:
    """Refuse statistics that were made of other weights.

    Args:
        statistics: What was opened.
        fingerprint: Of the model that is merged.

    Raises:
        IncompatibleError: If they belong to another model.
    """
    if statistics.model != fingerprint:
        raise IncompatibleError(
            f"{statistics.checkpoint.folder} holds {CALLED[statistics.kind]} of other weights than "
            f"those of {statistics.checkpoint.name}: it changed since, or this is another model. "
            f"{MEND}"
        )


def check_values(kind: DataStatistic, info: TensorInfo, values: Tensor) -> Tensor:
    """Statistics as they were read, if they can be what they are said to be.

    Args:
        kind: Of what kind they are.
        info: Where they lie.
        values: Any part of Fisher diagonals, or a whole Gram matrix.

    Raises:
        CheckpointError: If they are not finite, negative where they are squares, or not symmetric.
    """
    what = f"{info.path}: {info.name}"
    if not values.isfinite().all():
        raise CheckpointError(f"{what} holds NaN or infinity. {MEND}")
    squares = values if kind == "fisher" else values.diagonal()
    if (squares < 0).any():
        raise CheckpointError(f"{what} is negative where it should be a mean of squares. {MEND}")
    if kind == "gram" and values.numel():
        asymmetry = float((values - values.T).abs().max())
        if asymmetry > SYMMETRY_TOLERANCE * float(values.abs().max()):
            raise CheckpointError(f"{what} is not symmetric, so it is no Gram matrix. {MEND}")
    return values
