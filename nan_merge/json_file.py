"""JSON files that must hold a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nan_merge.errors import CheckpointError


def read_json_table(path: Path, mend: str) -> dict[str, Any]:
    """The content of a JSON file that holds a table.

    Args:
        path: The file.
        mend: What the user can do if it cannot be read, as a sentence.

    Raises:
        CheckpointError: If it is missing, cannot be read, is no JSON, or holds no table.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}. {mend}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is no JSON ({error}). {mend}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON table. {mend}")
    return content
