"""Ids of special tokens in config.json and generation_config.json, where the tokenizer changes.

The result's config is the base's, whose ids are rows of the base's vocabulary. Under another
model's tokenizer every key such as ``eos_token_id`` becomes, by the first of these that there is:

- what the same file of that model says, for its ids are rows of the result's vocabulary;
- for the tokens that a tokenizer names (``eos_token``, ...), the row of the named token;
- the row of the token for which the base's id stands.

A key for which there is none is removed: an id of the old vocabulary would be another token.
Under `union` nothing changes, as the base's tokens keep their rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nan_merge.publish import write_text_atomically
from nan_merge.tokenizer_files import has_tokenizer, read_tokens

CONFIG_NAMES = ("config.json", "generation_config.json")
ID_SUFFIXES = ("_token_id", "_token_index")
EVERYWHERE = ("bos_token_id", "eos_token_id", "pad_token_id")
PARTS = (None, "text_config")  # at the top, and of the language model of a vision model


def write_token_ids(folder: Path, base: Path, source: Path) -> None:
    """Give the configs of a result the ids of its tokenizer.

    Args:
        folder: The result's, with the base's configs.
        base: The model whose configs these are.
        source: The model whose tokenizer the result has.

    Raises:
        CheckpointError: If a tokenizer is damaged.
    """
    old = read_tokens(base) if has_tokenizer(base) else {}
    tokens, new = {row: token for token, row in old.items()}, read_tokens(source)
    named = _named_tokens(source)
    for name in CONFIG_NAMES:
        content, theirs = _read(folder / name), _read(source / name)
        if not content and name == "config.json":
            continue
        changed = json.dumps(content)
        for part in PARTS:
            own = content if part is None else content.get(part)
            if isinstance(own, dict):
                other = theirs if part is None else theirs.get(part)
                _replace(own, other if isinstance(other, dict) else {}, named, tokens, new)
        if json.dumps(content) != changed:
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            write_text_atomically(folder / name, text)


def _replace(
    config: dict[str, Any],
    theirs: Mapping[str, Any],
    named: Mapping[str, str],
    tokens: Mapping[int, str],
    new: Mapping[str, int],
) -> None:
    """Change every id of one table in place."""
    keys = [key for key in config if key.endswith(ID_SUFFIXES)]
    for key in dict.fromkeys([*keys, *(key for key in EVERYWHERE if key in theirs)]):
        if key in theirs:
            config[key] = theirs[key]
        elif named.get(key) in new:
            config[key] = new[named[key]]
        else:
            config[key] = _moved(config[key], tokens, new)
            if config[key] is None:
                del config[key]


def _moved(value: Any, tokens: Mapping[int, str], new: Mapping[str, int]) -> Any:
    """An id, or several, for the same tokens in the new vocabulary; None if one is not in it."""
    if isinstance(value, list):
        moved = [_moved(each, tokens, new) for each in value]
        return None if None in moved else moved
    return new.get(tokens.get(value, "")) if isinstance(value, int) else None


def _named_tokens(folder: Path) -> dict[str, str]:
    """Key such as ``eos_token_id`` -> the token that the tokenizer names so."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in _read(folder / name).items():
            token = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(token, str):
                found[f"{key}_id"] = token
    return found


def _read(path: Path) -> dict[str, Any]:
    """A table, empty if there is none: a model of transformers need not have these files."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
