"""What stays of a sweep's merge when its checkpoint is gone: who it was, and its manifest.

A record is a folder `points/NAME` with `point.json`, `merge_manifest.json` and the model card. It
says that the merge of this key gave weights of these digests; predictions lie under the digests,
so a sweep that goes on knows what is scored without merging again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from nan_merge.manifest import MANIFEST_NAME
from nan_merge.merge import merge_key_of
from nan_merge.plan import plan_merge
from nan_merge.publish import write_text_atomically
from nan_merge.recipe import MergeRecipe
from pipelines.sweep_points import Point

RECORD_NAME = "point.json"
CARD_NAME = "README.md"
MAX_WAVE = 128
"""Most merges at once: each holds a file open in every task."""
SHARE_OF_DISK = 0.8


def checkpoint_of(folder: Path, point: Point) -> Path:
    """Where a point's checkpoint lies in the run folder, while it is there."""
    return folder / "checkpoints" / point.folder


def record_folder(folder: Path, point: Point) -> Path:
    """Where a point's record lies in the run folder."""
    return folder / "points" / point.folder


def write_record(folder: Path, point: Point, identity: Mapping[str, str]) -> None:
    """Keep what is known of a merge that is scored.

    Args:
        folder: The run folder.
        point: The merge.
        identity: Digests of its checkpoint.
    """
    record, checkpoint = record_folder(folder, point), checkpoint_of(folder, point)
    manifest = (checkpoint / MANIFEST_NAME).read_text(encoding="utf-8")
    content = {
        "name": point.name,
        "merge_key": json.loads(manifest)["merge_key"],
        "identity": dict(identity),
    }
    write_text_atomically(record / CARD_NAME, (checkpoint / CARD_NAME).read_text(encoding="utf-8"))
    write_text_atomically(record / MANIFEST_NAME, manifest)
    write_text_atomically(record / RECORD_NAME, json.dumps(content, indent=1) + "\n")


def known_identity(folder: Path, point: Point, recipe: MergeRecipe) -> dict[str, str] | None:
    """Digests of the checkpoint that the recipe gave; None if it was not scored yet.

    Raises:
        NanMergeError: If the recipe's inputs are missing, damaged, or do not fit.
    """
    record = record_folder(folder, point)
    try:
        content = json.loads((record / RECORD_NAME).read_text(encoding="utf-8"))
        key, identity = content["merge_key"], dict(content["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none yet, or damaged: a lost record costs only time
    if not (record / MANIFEST_NAME).is_file() or merge_key_of(recipe) != key:
        return None
    return identity


def find_record(folder: Path, name: str) -> Path | None:
    """The record of the merge of this name in a run folder; None if there is none."""
    for path in sorted((folder / "points").glob(f"*/{RECORD_NAME}")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # damaged: a lost record costs only time
        if isinstance(content, dict) and content.get("name") == name:
            return path.parent
    return None


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a merge; its manifest goes first, so that half of it is never taken for all."""
    (checkpoint / MANIFEST_NAME).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def wave_size(folder: Path, recipe: MergeRecipe, keep: str) -> int:
    """How many merges like this one are made before they are scored and may go.

    Where all stay, the merge itself says if the disk is too small for them.
    """
    if keep == "all":
        return MAX_WAVE
    free = shutil.disk_usage(folder).free * SHARE_OF_DISK
    return min(MAX_WAVE, max(1, int(free // max(plan_merge(recipe).output_bytes, 1))))
