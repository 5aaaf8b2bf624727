"""Tokens and their rows, from the tokenizer files beside a model, and the files of a union."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nan_merge.errors import CheckpointError, IncompatibleError
from nan_merge.hub import is_own_file
from nan_merge.publish import write_text_atomically

# Where tokens are read from: the first of these, then what was added later.
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
ADDED_NAMES = ("added_tokens.json", "tokenizer_config.json")
TOKENIZER_FILES = (
    *TOKENIZER_NAMES, *ADDED_NAMES, "merges.txt", "special_tokens_map.json", "spiece.model",
    "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
PLAIN_TOKEN = {
    "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False,
}  # fmt: skip


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer whose tokens `read_tokens` can list."""
    return any((folder / name).is_file() for name in TOKENIZER_NAMES)


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 over the files from which tokens are read: equal ones give equal tokens."""
    digest = hashlib.sha256()
    for name in (*TOKENIZER_NAMES, *ADDED_NAMES):
        path = folder / name
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def read_tokens(folder: Path) -> dict[str, int]:
    """Token -> row, added tokens included.

    Read from the first there is of tokenizer.json, tokenizer.model (SentencePiece), vocab.json
    and vocab.txt; then from added_tokens.json and tokenizer_config.json what that lacks.

    Raises:
        CheckpointError: If a file is damaged.
    """
    path = next(folder / name for name in TOKENIZER_NAMES if (folder / name).is_file())
    try:
        tokens = _read_main(path)
        path = folder / "added_tokens.json"
        added = json.loads(path.read_bytes()) if path.is_file() else {}
        tokens = {str(token): int(row) for token, row in added.items()} | tokens
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_bytes()) if path.is_file() else {}
        decoder = config.get("added_tokens_decoder") or {}
        return {str(entry["content"]): int(row) for row, entry in decoder.items()} | tokens
    except Exception as error:  # the tokenizers library raises plain `Exception`
        raise CheckpointError(
            f"{path} is damaged or of an unknown form ({error}). Save the tokenizer again with "
            "transformers, or download it again."
        ) from error


def _read_main(path: Path) -> dict[str, int]:
    if path.name == "tokenizer.json":
        from tokenizers import Tokenizer

        return dict(Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True))
    if path.name == "tokenizer.model":
        return {piece: row for row, piece in enumerate(_sentence_pieces(path.read_bytes()))}
    if path.name == "vocab.json":
        return {str(token): int(row) for token, row in json.loads(path.read_bytes()).items()}
    # Only at the end of a line, as transformers reads it: a token may be another kind of break.
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return {token: row for row, token in enumerate(lines)}


def _sentence_pieces(content: bytes) -> Iterator[str]:
    """The pieces of a SentencePiece model, a protocol buffer: ``pieces = 1 { piece = 1 }``.

    Format: sentencepiece/src/sentencepiece_model.proto.
    """
    for number, field in _fields(content):
        if number == 1:
            yield next((value.decode() for inner, value in _fields(field) if inner == 1), "")


def _fields(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a protocol buffer: number and, of those that have one, the bytes."""
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        size = {1: 8, 5: 4}.get(key & 7, 0)
        if key & 7 == 2:
            size, place = _varint(content, place)
        elif key & 7 == 0:
            _, place = _varint(content, place)
        elif not size:
            raise ValueError("not a SentencePiece model")
        if place + size > len(content):
            raise ValueError("the file was cut short")
        yield key >> 3, content[place : place + size]
        place += size


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(content):
        byte = content[place]
        value, shift, place = value | (byte & 0x7F) << shift, shift + 7, place + 1
        if byte < 0x80:
            return value, place
    raise ValueError("the file was cut short")


def write_tokenizer(
    folder: Path, source: Path, added: Mapping[str, int], examples: Sequence[Path], num_rows: int
) -> None:
    """Give a result its tokenizer, and its config the number of rows.

    Args:
        folder: The result's, with its config, and perhaps another model's tokenizer.
        source: Whose tokenizer it takes.
        added: Tokens to add to it -> their rows.
        examples: Folders whose tokenizers may say of a token that it is special, and so on.
        num_rows: Rows of the embeddings.

    Raises:
        IncompatibleError: If the tokenizer would give a token another row.
    """
    for name in TOKENIZER_FILES:
        (folder / name).unlink(missing_ok=True)
        if is_own_file(source / name):
            shutil.copyfile(source / name, folder / name)
    add_tokens(folder, added, examples)
    config = _read(folder / "config.json")
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and part.get("vocab_size", num_rows) != num_rows:
            part["vocab_size"] = num_rows
            _write(folder / "config.json", config)


def add_tokens(folder: Path, added: Mapping[str, int], examples: Sequence[Path]) -> None:
    """Write tokens into the tokenizer files of a folder, under given rows.

    Args:
        folder: Holds the tokenizer files of the model that lacks these tokens.
        added: Token -> row.
        examples: Folders whose tokenizers may say of a token that it is special, and so on.

    Raises:
        IncompatibleError: If the tokenizer would give a token another row.
    """
    if not added:
        return
    known = _definitions(examples)
    entries = {
        row: {**PLAIN_TOKEN, **known.get(token, {}), "id": row, "content": token}
        for token, row in sorted(added.items(), key=lambda item: item[1])
    }
    path = folder / "tokenizer.json"
    if path.is_file():
        content = _read(path)
        content["added_tokens"] = [*(content.get("added_tokens") or []), *entries.values()]
        _write(path, content)
    if not path.is_file() or (folder / "added_tokens.json").is_file():
        _write(folder / "added_tokens.json", {**_read(folder / "added_tokens.json"), **added})
    config = _read(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        for row, entry in entries.items():
            plain = {key: value for key, value in entry.items() if key != "id"}
            config["added_tokens_decoder"][str(row)] = plain
        _write(folder / "tokenizer_config.json", config)
    written = read_tokens(folder)
    wrong = sorted(token for token, row in added.items() if written.get(token) != row)
    if wrong:
        raise IncompatibleError(
            f"{folder}: the tokenizer cannot take token {wrong[0]!r} in at row {added[wrong[0]]:,} "
            f"({len(wrong)} such tokens). Choose `tokenizer: base` or a model's name."
        )


def special_tokens(folder: Path) -> set[str]:
    """Tokens that a tokenizer's files call special, and that no text holds."""
    return {token for token, own in _definitions([folder]).items() if own.get("special")}


def _definitions(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        decoder = _read(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
        listed = _read(folder / "tokenizer.json").get("added_tokens") or []
        for entry in (*listed, *decoder.values()):
            own = {key: entry[key] for key in PLAIN_TOKEN if key in entry}
            found.setdefault(str(entry["content"]), own)
    return found


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_text_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
