"""The folder of a run: who may write to it, and what the folders inside it are called."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nan_merge.errors import ConfigError, OutputError
from nan_merge.fingerprint import digest_text
from nan_merge.ownership import STALE_SECONDS, Holding, OwnedElsewhere, holding
from nan_merge.publish import explain_write_errors

MAX_NAME_BYTES = 120
OWNER_NAME = ".owner"


@contextmanager
def sole_writer(folder: Path) -> Generator[Holding]:
    """Make the folder and keep other runs out of it until the block, or this process, ends.

    Raises:
        OutputError: If another run is at work there, or the path cannot be a folder.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(
            f"{folder} is a file, but results go to a folder. Name another: with `run_folder=...` "
            "of a run, with `--output DIR` of `evaluate` and `compare`."
        )
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            with explain_write_errors(folder):
                held = stack.enter_context(holding(folder / OWNER_NAME))
        except OwnedElsewhere as error:
            raise OutputError(
                f"Another run is writing to {folder} at this moment ({error}). Wait for it, or "
                "give this one another folder with `run_folder=...`. A run on a machine that "
                f"is gone leaves the folder free {STALE_SECONDS:.0f} s after its last sign of life."
            ) from error
        yield held


def refuse_other_run(folder: Path, name: str, seed: int) -> None:
    """Keep the results of a run that has another name or seed.

    Raises:
        ConfigError: If such results are in the folder.
    """
    try:
        recorded = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        found = (recorded["name"], recorded["seed"])
    except (OSError, ValueError, KeyError, TypeError):
        return  # nothing was finished here, or nothing can be read that could be kept
    if found != (name, seed):
        raise ConfigError(
            f"{folder} holds the results of {found[0]} with seed {found[1]}; {name} with seed "
            f"{seed} would write over them. Give this run another folder: "
            f"`run_folder={folder}-seed{seed}`."
        )


def slug(name: str) -> str:
    """A name as the name of a folder; letters of every script stay."""
    safe = re.sub(r"[^\w.]+", "-", name.lower()).strip("-.") or "merge"
    if len(safe.encode()) <= MAX_NAME_BYTES:
        return safe
    short = safe.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    return f"{short}-{_digest(name)}"


def folder_names(names: Sequence[str]) -> dict[str, str]:
    """Name -> folder's name; names that would share one get a digest each.

    >>> folder_names(["TA", "甲"])
    {'TA': 'ta', '甲': '甲'}
    """
    slugs = {name: slug(name) for name in names}
    counts = Counter(slugs.values())
    return {
        name: short if counts[short] == 1 else f"{short}-{_digest(name)}"
        for name, short in slugs.items()
    }


def _digest(name: str) -> str:
    return digest_text(name)[:8]
