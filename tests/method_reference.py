"""Give a method what the engine would: pieces that it may overwrite, and statistics in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from nan_merge.methods import METHODS, Context, TensorNorms
from nan_merge.methods.consensus import rule_of, vote
from nan_merge.methods.dare import rescale_of
from nan_merge.methods.method import per_model
from nan_merge.methods.ties import kept_rank, trim
from nan_merge.random import uniform
from nan_merge.schema import StrictModel

SHAPES = [(), (1,), (7,), (5, 1), (1, 6), (1, 1), (4, 9), (3, 4, 5), (130,), (0,), (0, 3), (3, 0)]


def options_of(name: str, **options: Any) -> StrictModel:
    return METHODS[name].options.model_validate({"name": name, **options})


def draw(shape: Sequence[int], num_models: int, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """A base and fine-tunes near it."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return base, [base + 0.1 * torch.randn(shape, generator=generator) for _ in range(num_models)]


def merge_whole(
    options: Any,
    base: Tensor | None,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    cuts: Sequence[int] = (),
    **known: Any,
) -> Tensor:
    """One tensor merged as if it were a whole model; ``cuts`` are elements, or rows for rows."""
    row = METHODS[options.name].for_options(options)
    shape = tuple(finetuned[0].shape)
    models = tuple(f"model{place}" for place in range(len(finetuned)))
    context: dict[str, Any] = {"tensor": "weight", "shape": shape, "models": models, "seed": 5}
    if base is not None and {"magnitude_threshold", "tensor_threshold"} & set(row.needs):
        context["thresholds"] = thresholds_of(options, base, finetuned)
    if base is not None and "majority_sign" in row.needs:
        context["majority_sign"] = majority_of(
            options, base, finetuned, coefficients, context["thresholds"]
        )
    if "inner_products" in row.needs:
        context["norms"] = norms_of(base, finetuned)
    context |= known
    if "kept_sums" in row.needs:
        context["rescales"] = rescales_of(options, base, finetuned, context)
    columns = shape[-1] if shape else 1
    flat = {"element": (-1,), "row": (-1, columns), "matrix": shape or (1,)}[row.unit]
    if math.prod(shape) == 0:
        flat = shape
    step = {"element": 1, "row": columns, "matrix": 0}[row.unit]
    edges = [0, *sorted(cuts), None] if step and math.prod(shape) else [0, None]
    merged: list[Tensor] = []
    for start, end in pairwise(edges):
        pieces = [t.reshape(flat)[start:end].clone() for t in finetuned]
        base_piece = None if base is None else base.reshape(flat)[start:end].clone()
        place = Context(**context, start=(start or 0) * step)
        merged.append(row.merge(base_piece, pieces, coefficients, options, place))
    return torch.cat(merged).reshape(shape)


def majority_of(
    options: Any,
    base: Tensor,
    finetuned: Sequence[Tensor],
    coefficients: Sequence[float],
    thresholds: Sequence[float],
) -> float:
    """The sign that most elements elect; minus if as many elect the other."""
    trimmed = trim(base, [tensor.clone() for tensor in finetuned], thresholds)
    votes = vote(trimmed, coefficients, options, rule_of(options, options.dialect))
    return 1.0 if int(votes.sign().sum()) > 0 else -1.0


def thresholds_of(options: Any, base: Tensor, finetuned: Sequence[Tensor]) -> tuple[float, ...]:
    """By sorting, the magnitude of each model's `kept_rank`."""
    found: list[float] = []
    for tensor, density in zip(finetuned, per_model(options.density, len(finetuned)), strict=True):
        magnitudes = (tensor - base).abs().flatten().sort().values.tolist()
        rank = kept_rank(options.dialect, density, len(magnitudes))
        found.append([0.0, *magnitudes, math.inf][rank])
    return tuple(found)


def rescales_of(
    options: Any, base: Tensor | None, finetuned: Sequence[Tensor], context: dict[str, Any]
) -> tuple[float, ...]:
    """The factors that keep each task vector's sum of magnitudes when some of it is dropped."""
    found: list[float] = []
    densities = per_model(options.density, len(finetuned))
    for tensor, model, density in zip(finetuned, context["models"], densities, strict=True):
        magnitudes = (tensor - base).double().abs().flatten()
        draws = uniform(context["seed"], model, context["tensor"], 0, len(magnitudes))
        kept = magnitudes[draws < torch.tensor(density, dtype=torch.float32)]
        found.append(rescale_of(float(magnitudes.sum()), float(kept.sum())))
    return tuple(found)


def norms_of(base: Tensor | None, finetuned: Sequence[Tensor]) -> TensorNorms:
    weights = torch.stack([tensor.double().flatten() for tensor in finetuned])
    vectors = weights
    if base is not None:
        vectors = torch.stack([(tensor - base).double().flatten() for tensor in finetuned])
    return TensorNorms(_gram(weights), _gram(vectors) if base is not None else ())


def _gram(rows: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in (rows @ rows.T).tolist())
