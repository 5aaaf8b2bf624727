"""The index of a sharded checkpoint, which says what its files are."""

from __future__ import annotations

from pathlib import Path

from nan_merge.errors import CheckpointError
from nan_merge.json_file import read_json_table

MEND = "Download or save it again."


def indexed_files(index: Path, suffix: str) -> tuple[Path, ...]:
    """The files of weights that an index names, sorted.

    Args:
        index: e.g. ``model.safetensors.index.json``, beside the files.
        suffix: What their names must end in.

    Raises:
        CheckpointError: If it cannot be read, names a file outside its folder, or one is missing.
    """
    places = read_json_table(index, MEND).get("weight_map")
    if not isinstance(places, dict):
        raise CheckpointError(f"{index} is damaged: it has no `weight_map`. {MEND}")
    for name in places.values():
        # A checkpoint's files lie in its folder; `../x` or `/x` would read somewhere else.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(suffix):
            raise CheckpointError(
                f"{index} names {name!r}, which is no file of this folder. {MEND}"
            )
    files = tuple(index.parent / name for name in sorted(set(places.values())))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} is incomplete: {len(missing)} of {len(files)} files that {index.name} "
            f"names are missing, the first is {missing[0]}. Download it again."
        )
    return files
