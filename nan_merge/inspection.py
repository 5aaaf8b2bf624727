"""Read models once and describe them: norms, means, sign conflicts, cosines, by layer.

Everything is counted or summed on the fixed grid of `nan_merge.blocks`: counts are integers, sums
are of float64 partials joined by `math.fsum`, so no number depends on how many workers there are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from nan_merge.blocks import Chunk, Run, cut
from nan_merge.checkpoint import Checkpoint, layer_of
from nan_merge.errors import CheckpointError, IncompatibleError
from nan_merge.inspected import Inspection, Moments, Part
from nan_merge.layout import AlignedTensor
from nan_merge.lazy_torch import torch
from nan_merge.missing import find_problems
from nan_merge.model_reference import open_model
from nan_merge.plan import align, list_problems
from nan_merge.problems import Problems, as_one, attempt, match_each
from nan_merge.workers import run_chunks

if TYPE_CHECKING:
    from torch import Tensor

    from nan_merge.blocks import Block

OnProgress = Callable[[int, int], None]
# Sums over some elements: of the B + T models' weights, their squares, the T task vectors, then
# T x T each of inner products, of products of signs and of their magnitudes; then two counts.
Sums = tuple[float, ...]


def inspect_models(
    paths: Sequence[str],
    base: str | None = None,
    workers: int = 1,
    on_progress: OnProgress | None = None,
) -> Inspection:
    """Read models once and describe them.

    Args:
        paths: Folders, files or hub ids, or BASE+ADAPTER; T of them.
        base: What they were fine-tuned from. Without it nothing is known of task vectors.
        workers: Processes that read.
        on_progress: Called with the bytes read and the bytes in all.

    Raises:
        NanMergeError: If models cannot be opened or do not fit each other; lists every problem.
        CheckpointError: If a value is NaN or infinite; names the tensor and the file.
    """
    opened_base, models = _open(paths, base)
    if misfits := list(find_problems(opened_base, models, "drop")):
        reference = opened_base or models[0]
        raise IncompatibleError(
            f"The models do not fit each other {list_problems(misfits)}\n"
            f"Inspect together only fine-tunes of {reference.name} ({reference.folder})."
        )
    tensors = align(opened_base, models, "drop")
    merged = [tensor for tensor in tensors if tensor.is_merged]
    if not merged:
        raise CheckpointError("The models share no tensor of floating-point numbers.")
    sums = _sum_tensors(merged, workers, on_progress)
    layers: dict[str, list[AlignedTensor]] = {}
    for tensor in merged:
        layers.setdefault(layer_of(tensor.name), []).append(tensor)
    in_order = sorted(layers.items(), key=lambda item: _depth(item[0]))
    parts = tuple(_part(name, of_layer, sums) for name, of_layer in in_order)
    kept = {tensor.name for tensor in merged}
    everyone = [opened_base, *models] if opened_base else models
    left_out = {name: None for each in everyone for name in each.tensors if name not in kept}
    names = tuple(model.name for model in models)
    base_name = opened_base.name if opened_base else None
    return Inspection(base_name, names, _part("*", merged, sums), parts, tuple(left_out))


def _depth(layer: str) -> int:
    """Embeddings come first, then the layers, then what stands on them; else by name."""
    if layer.rpartition(".")[2].isdecimal():
        return 1
    return 0 if re.search(r"emb|wte|wpe|conv1|patch|ln_pre", layer) else 2


def _open(paths: Sequence[str], base: str | None) -> tuple[Checkpoint | None, list[Checkpoint]]:
    problems: Problems = []
    opened_base = attempt(problems, open_model, base, "base") if base is not None else None
    short = [PurePosixPath(path.rstrip("/")).name or path for path in paths]
    names = [
        name if [*short, "base"].count(name) == 1 else path
        for name, path in zip(short, paths, strict=True)
    ]
    models = [
        attempt(problems, open_model, path, name, opened_base)
        for path, name in zip(paths, names, strict=True)
    ]
    found = [model for model in models if model is not None]
    matched = None if problems else match_each(opened_base, found, "base", problems)
    if matched is None:
        raise as_one(problems, "inspected")
    return matched.base, list(matched.models)


def _sum_tensors(
    tensors: Sequence[AlignedTensor], workers: int, on_progress: OnProgress | None
) -> dict[str, Sums]:
    """Tensor's name -> sums over its elements."""
    chunks = cut(tensors)
    found: dict[str, list[Sums]] = {tensor.name: [] for tensor in tensors}
    total = sum(tensor.input_bytes for tensor in tensors)
    done = 0
    for chunk, sums in zip(chunks, run_chunks(_sum_chunk, chunks, workers), strict=True):
        found[chunk.tensor.name].append(sums)
        done += chunk.count * sum(info.dtype.itemsize for info in chunk.tensor.inputs)
        if on_progress:
            on_progress(done, total)
    return {name: _add(sums) for name, sums in found.items()}


def _add(sums: Sequence[Sums]) -> Sums:
    return tuple(map(math.fsum, zip(*sums, strict=True)))


def _sum_chunk(chunk: Chunk) -> Sums:
    blocks = [_sum_block(run, block) for run in chunk.runs() for block in run.read_blocks()]
    if not blocks:  # an empty tensor
        num_models, has_base = len(chunk.tensor.finetuned), chunk.tensor.base is not None
        square = 3 * num_models**2 + num_models + 2 if has_base else 0
        return (0.0,) * (2 * (num_models + has_base) + square)
    return _add([tuple(block.tolist()) for block in blocks])


def _sum_block(run: Run, block: Block) -> Tensor:
    """The sums over one block, float64."""
    base, models = block
    weights = [base, *models] if base is not None else models
    wide = torch.stack([piece.double() for piece in weights])
    squares = (wide * wide).sum(dim=1)
    _refuse_non_finite(run, squares)
    parts = [wide.sum(dim=1), squares]
    if base is not None:
        # The task vector is a float32 difference here as in every method, then widened.
        vectors = torch.stack([piece.sub_(base) for piece in models])
        wide = vectors.double()
        signs = vectors.sign()
        magnitudes = signs.abs()
        products = wide @ wide.T
        if not products.isfinite().all():
            raise CheckpointError(
                f"Tensor {run.chunk.tensor.name}: the models differ by more than float32 can hold."
            )
        parts += [wide.sum(dim=1), products.flatten()]
        # Whole numbers up to a block's size, exact in float32.
        parts += [(signs @ signs.T).flatten(), (magnitudes @ magnitudes.T).flatten()]
        is_conflict = signs.amax(dim=0) - signs.amin(dim=0) == 2
        is_contested = magnitudes.sum(dim=0) >= 2
        parts.append(torch.stack([is_conflict.sum(), is_contested.sum()]))
    return torch.cat([part.double() for part in parts])


def _refuse_non_finite(run: Run, squares: Tensor) -> None:
    # Sums of squares of finite float32 numbers fit into float64: anything else was in the file.
    tensor = run.chunk.tensor
    for info, value in zip(tensor.inputs, squares.tolist(), strict=True):
        if not math.isfinite(value):
            raise CheckpointError(
                f"{info.path}: tensor {info.name} holds NaN or infinity (between elements "
                f"{run.start:,} and {run.start + run.count - 1:,}). A merge would spread it; "
                "repair or leave out this model."
            )


def _part(name: str, tensors: Sequence[AlignedTensor], sums: dict[str, Sums]) -> Part:
    """What the sums over some tensors say."""
    num_elements = sum(tensor.reference.num_elements for tensor in tensors)
    values = list(_add([sums[tensor.name] for tensor in tensors]))
    num_models, has_base = len(tensors[0].finetuned), tensors[0].base is not None

    def take(count: int) -> list[float]:
        taken = values[:count]
        del values[:count]
        return taken

    totals, squares = take(num_models + has_base), take(num_models + has_base)
    weights = tuple(Moments(num_elements, *pair) for pair in zip(totals, squares, strict=True))
    if not has_base:
        return Part(name, num_elements, weights)
    totals = take(num_models)
    products, signs, both = (
        [take(num_models) for _ in range(num_models)] for _ in ("products", "signs", "both")
    )
    return Part(
        name,
        num_elements,
        weights,
        tuple(Moments(num_elements, t, products[i][i]) for i, t in enumerate(totals)),
        tuple(map(tuple, products)),
        # Signs of one direction count 1 in their product, of opposite ones -1.
        opposed=tuple(
            tuple(int(n - s) // 2 for n, s in zip(*rows, strict=True))
            for rows in zip(both, signs, strict=True)
        ),
        changed=tuple(tuple(map(int, row)) for row in both),
        num_conflicts=int(values[0]),
        num_contested=int(values[1]),
    )
