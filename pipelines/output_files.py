"""Files that a command writes beside its output; refused early if they cannot be written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nan_merge.errors import OutputError
from nan_merge.publish import write_text_atomically


def check_output_file(path: Path | None, suffixes: Sequence[str]) -> None:
    """Refuse a file that could not be written later.

    Raises:
        OutputError: If it has another suffix, is a folder, or its folder is missing.
    """
    if path is None:
        return
    if path.suffix.lower() not in suffixes:
        raise OutputError(
            f"{path} ends with none of {', '.join(suffixes)}, which say what kind of file to write."
        )
    if path.is_dir():
        raise OutputError(f"{path} is a folder. Give the name of a file.")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"There is no folder {path.parent}. Make it, or write elsewhere.")


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all; numbers that JSON lacks (NaN, infinity) are refused."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomically(path, text + "\n")
