"""Vocabularies that differ: rows of embeddings and output heads are matched by token.

The result's vocabulary is the base's, a model's, or their union: the base's, and after its last
token those that only models have, in the recipe's order. Where a model lacks a token of the
result, it has the base's row, as if it had not trained it; where the base lacks it too, the mean
of the models that have it. So a token of one model alone keeps that model's row. Rows beyond the
tokenizer (padding to a round number) are matched by their number.

Or it is that of a folder which holds a config and no model (`nan_merge.config_place`). Its special
tokens and padding that no model has, such as ``<image>``, are never read as embeddings: features of
images stand in their place. They get the mean of the base's rows (of each model's own, if there is
no base). Nothing is drawn; and as outputs they do not win, for no mean of logits is above the
largest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from nan_merge.checkpoint import Checkpoint
from nan_merge.errors import IncompatibleError
from nan_merge.lora import AdaptedCheckpoint, config_folder
from nan_merge.row_mapped import MEAN_ROW, map_rows
from nan_merge.safetensors_file import TensorInfo
from nan_merge.tokenizer_files import (
    has_tokenizer,
    read_tokens,
    special_tokens,
    tokenizer_digest,
)

# Input embeddings, output heads and their biases, by the names that architectures give them.
VOCABULARY_NAMES = (
    "*embed_tokens.weight", "*wte.weight", "*word_embeddings.weight", "*tok_embeddings.weight",
    "*embed_in.weight", "*token_embedding.weight", "*embeddings.weight", "*shared.weight",
    "*lm_head.weight", "*lm_head.bias", "*embed_out.weight", "output.weight",
)  # fmt: skip

# What stands for a row: its token, or its number if the tokenizer has none for it.
RowKey = str | int


@dataclass(frozen=True)
class Vocabulary:
    """The result's rows and tokenizer.

    Attributes:
        num_rows: Rows of the embeddings, padding included.
        folder: Whose tokenizer files the result takes.
        added: Tokens that these files lack, with their rows; only in a union.
        folders: Whose tokenizer files say what kind of token these are.
        filled: Tokens and numbers of rows that no model has.
    """

    num_rows: int
    folder: Path
    added: dict[str, int]
    folders: tuple[Path, ...]
    filled: tuple[RowKey, ...] = ()


@dataclass(frozen=True)
class Matched:
    """Checkpoints whose embeddings have the same rows in the same order.

    Attributes:
        base: The base model, if there is one.
        models: The fine-tuned models.
        vocabulary: The result's, or None if no model has both a tokenizer and embeddings.
    """

    base: Checkpoint | None
    models: tuple[Checkpoint, ...]
    vocabulary: Vocabulary | None


@dataclass(frozen=True)
class _Rows:
    """A model's rows: what each stands for, and where each token is."""

    keys: list[RowKey]
    row_of: dict[RowKey, int]
    num_tokens: int


def match_vocabularies(
    base: Checkpoint | None, models: Sequence[Checkpoint], tokenizer: str = "base"
) -> Matched:
    """Bring the embeddings of all models to one vocabulary. Reads headers and tokenizers only.

    Args:
        base: The base model, if there is one.
        models: The fine-tuned models, in the recipe's order.
        tokenizer: ``base`` (the first model's if there is no base), ``union``, or a model's name.

    Raises:
        IncompatibleError: If a model's vocabulary is needed and it has no tokenizer, or no model
            is called ``tokenizer``.
        CheckpointError: If a tokenizer is damaged.
    """
    everyone = [base, *models] if base is not None else list(models)
    chosen = _chosen(everyone, tokenizer)
    names = [vocabulary_tensors(checkpoint) for checkpoint in everyone]
    folders = [tokenizer_folder(checkpoint) for checkpoint in everyone]
    if not names[chosen] or not has_tokenizer(folders[chosen]):
        return Matched(base, tuple(models), None)
    sizes = {tensor.shape[0] for own in names for tensor in own.values()}
    digests = [tokenizer_digest(folder) if has_tokenizer(folder) else None for folder in folders]
    if len(sizes) == 1 and set(digests) <= {digests[chosen], None}:
        # The usual case, in which no tokenizer needs to be read: they can be large.
        same = Vocabulary(sizes.pop(), folders[chosen], {}, tuple(folders))
        return Matched(base, tuple(models), same)
    expected = _rows_of(_num_rows(names[chosen]), read_tokens(folders[chosen]))
    known = _all_rows(everyone, names, folders, expected, everyone[chosen].name)
    keys = _union(known) if tokenizer == "union" else list(known[chosen].keys)
    present = known[chosen].row_of
    added = {k: row for row, k in enumerate(keys) if isinstance(k, str) and k not in present}
    vocabulary = Vocabulary(len(keys), folders[chosen], added, tuple(folders))
    has_base = base is not None
    mapped = [
        _with_rows(place, everyone, names, known, keys, has_base) for place in range(len(everyone))
    ]
    return Matched(mapped[0] if has_base else None, tuple(mapped[has_base:]), vocabulary)


def match_to_place(
    base: Checkpoint | None, models: Sequence[Checkpoint], place: Checkpoint, num_rows: int
) -> Matched:
    """Bring the embeddings of all models to the vocabulary of a folder without weights.

    Args:
        base: The base model, if there is one.
        models: The fine-tuned models, in the recipe's order.
        place: The folder.
        num_rows: Rows that its config asks for.

    Raises:
        IncompatibleError: If it has words that no model has, or a model that cannot be matched has
            no tokenizer.
        CheckpointError: If a tokenizer is damaged.
    """
    everyone = [base, *models] if base is not None else list(models)
    names = [vocabulary_tensors(checkpoint) for checkpoint in everyone]
    folders = [tokenizer_folder(checkpoint) for checkpoint in everyone]
    expected = _rows_of(num_rows, read_tokens(place.folder))
    known = _all_rows(everyone, names, folders, expected, place.name)
    there = set[RowKey]().union(*(rows.row_of for rows in known))
    lacking = tuple(key for key in expected.keys if key not in there)
    _refuse_words(place, lacking)
    vocabulary = Vocabulary(num_rows, place.folder, {}, (place.folder, *folders), lacking)
    mapped = [
        _with_rows(number, everyone, names, known, expected.keys, base is not None, fill=True)
        for number in range(len(everyone))
    ]
    return Matched(mapped[0] if base else None, tuple(mapped[base is not None :]), vocabulary)


def _refuse_words(place: Checkpoint, lacking: Sequence[RowKey]) -> None:
    """Only special tokens may get a row that nobody trained."""
    special = special_tokens(place.folder)
    words = [key for key in lacking if isinstance(key, str) and key not in special]
    if words:
        more = f" and {len(words) - 1:,} more" if len(words) > 1 else ""
        raise IncompatibleError(
            f"`config`: {place.name} ({place.folder}) has the token {words[0]!r}{more}, which no "
            "model has and which is no special token: it is a tokenizer of other models."
        )


def _chosen(everyone: Sequence[Checkpoint], tokenizer: str) -> int:
    if tokenizer in ("base", "union"):
        return 0
    names = [checkpoint.name for checkpoint in everyone]
    if tokenizer not in names:
        raise IncompatibleError(
            f"`tokenizer: {tokenizer}` is neither `base`, `union`, nor a model of this recipe "
            f"({', '.join(names)})."
        )
    return names.index(tokenizer)


def tokenizer_folder(checkpoint: Checkpoint) -> Path:
    """Where a model's tokenizer lies: an adapter may bring its own, else it is its base's."""
    while isinstance(checkpoint, AdaptedCheckpoint) and not has_tokenizer(checkpoint.folder):
        checkpoint = checkpoint.base
    return checkpoint.folder


def vocabulary_tensors(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """A model's tensors with one row per token: named so, and all of one number of rows."""
    found = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if tensor.shape and any(fnmatchcase(name, pattern) for pattern in VOCABULARY_NAMES)
    }
    sizes = {tensor.shape[0] for tensor in found.values()}
    declared = _declared_size(config_folder(checkpoint))
    # An adapter may have added tokens without changing the config that lies beside its base.
    size = declared if declared in sizes else max(sizes, default=0)
    return {name: tensor for name, tensor in found.items() if tensor.shape[0] == size}


def _declared_size(folder: Path) -> int | None:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    parts = (config.get("text_config"), config)
    sizes = [
        part["vocab_size"] for part in parts if isinstance(part, dict) and "vocab_size" in part
    ]
    return sizes[0] if sizes and isinstance(sizes[0], int) else None


def _all_rows(
    everyone: Sequence[Checkpoint],
    names: Sequence[Mapping[str, TensorInfo]],
    folders: Sequence[Path],
    expected: _Rows,
    chosen: str,
) -> list[_Rows]:
    found: list[_Rows] = []
    for checkpoint, tensors, folder in zip(everyone, names, folders, strict=True):
        if tensors and has_tokenizer(folder):
            found.append(_rows_of(_num_rows(tensors), read_tokens(folder)))
            continue
        # A model without tokenizer counts as having the chosen one, if it has as many rows.
        sizes = {tensor.shape[0] for tensor in tensors.values()}
        if sizes and sizes != {len(expected.keys)}:
            raise IncompatibleError(
                f"{checkpoint.name} ({checkpoint.folder}) has {sizes.pop():,} rows of embeddings, "
                f"{chosen} {len(expected.keys):,}, and no tokenizer by which to "
                "match them. Put its tokenizer.json (or tokenizer.model) into its folder."
            )
        found.append(expected)
    return found


def _num_rows(tensors: Mapping[str, TensorInfo]) -> int:
    return next(iter(tensors.values())).shape[0]


def _rows_of(num_rows: int, tokens: Mapping[str, int]) -> _Rows:
    keys: list[RowKey] = list(range(num_rows))
    row_of: dict[RowKey, int] = {}
    for token, row in sorted(tokens.items(), key=lambda item: (item[1], item[0])):
        # A token beyond the last row was added to the tokenizer and never to the model.
        if 0 <= row < num_rows:
            row_of[token] = row
            keys[row] = token if isinstance(keys[row], int) else keys[row]
    num_tokens = max(row_of.values(), default=-1) + 1
    row_of |= {key: row for row, key in enumerate(keys) if isinstance(key, int)}
    return _Rows(keys, row_of, num_tokens)


def _union(rows: Sequence[_Rows]) -> list[RowKey]:
    """The first one's rows; then, over its padding and beyond, the tokens that it lacks."""
    first, *others = rows
    lacking = {
        key: None
        for other in others
        for key in other.keys
        if isinstance(key, str) and key not in first.row_of
    }
    kept = first.keys[: first.num_tokens]
    return [*kept, *lacking, *first.keys[first.num_tokens + len(lacking) :]]


def _with_rows(
    place: int,
    everyone: Sequence[Checkpoint],
    names: Sequence[Mapping[str, TensorInfo]],
    rows: Sequence[_Rows],
    keys: Sequence[RowKey],
    has_base: bool,
    fill: bool = False,
) -> Checkpoint:
    """One model with the result's rows in its embeddings; its own tensors where they are that.

    A row that nobody has is an error, or with ``fill`` the mean of the base's rows, or its own.
    """
    if rows[place].keys == keys:
        return everyone[place]
    tensors = dict(everyone[place].tensors)
    # Itself first, then the base, then the others.
    preferred = {place, 0} if has_base else {place}
    order = sorted(range(len(everyone)), key=lambda one: (one != place, one not in preferred, one))
    for name, own in names[place].items():
        having = [
            one
            for one in order
            if name in names[one] and names[one][name].shape[1:] == own.shape[1:]
        ]
        num_first = sum(one in preferred for one in having)
        origins: list[list[tuple[int, int]]] = []
        for key in keys:
            places = [
                (number, rows[one].row_of[key])
                for number, one in enumerate(having)
                if key in rows[one].row_of
            ]
            if not places and fill:
                whose = having.index(0) if has_base and 0 in having else having.index(place)
                places = [(whose, MEAN_ROW)]
            if not places:
                raise IncompatibleError(
                    f"{name}: no model that has token {key!r} has this tensor, so the token has no "
                    "row in it. Choose `tokenizer: base`, or leave the tensor out with "
                    f"`missing: {{{name}: drop}}`."
                )
            origins.append(places[:1] if places[0][0] < num_first else places)
        tensors[name] = map_rows(own, [names[one][name] for one in having], origins)
    # All that decides its numbers: rows may come from any of them.
    files = dict.fromkeys(file for one in order for file in everyone[one].files)
    return replace(everyone[place], tensors=tensors, files=tuple(files))
