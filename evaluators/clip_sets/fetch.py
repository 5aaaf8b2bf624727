"""Fetch an image set from the Hugging Face hub as parquet; no code of a repository is run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from evaluators.clip_sets import find_clip_set
from evaluators.clip_sets.layouts import list_images
from evaluators.data_fetch import snapshot
from nan_merge.errors import DataError
from nan_merge.publish import publish_folder


def fetch_set(
    name: str, folder: Path, splits: Sequence[str] = ("test",), revision: str | None = None
) -> Path:
    """Fetch splits of a set into ``folder/NAME``; it appears when it is whole and checked.

    Args:
        name: The set's.
        folder: Where folders of benchmarks lie.
        splits: ``test``, ``train`` or both.
        revision: Of the hub's repository; its main branch if None.

    Raises:
        ConfigError: If the set is unknown.
        DataError: If the hub cannot be reached, or what it has is not this set.
        MissingExtraError: If parquet cannot be read here.
        OutputError: If the folder is taken or cannot be written.
    """
    clip_set = find_clip_set(name)
    target = folder / name
    with publish_folder(target) as staging:
        for split in splits:
            pattern = clip_set.parquet.format(split=split)
            source = snapshot(clip_set.repository, [pattern], revision)
            files = sorted(source.glob(pattern))
            if not files:
                raise DataError(f"{clip_set.repository} has no {pattern} on the hub.")
            for file in files:
                shutil.copyfile(file, staging / file.name)
            listing = list_images(clip_set, staging, split)
            problems = [each.replace(str(staging), str(target)) for each in listing.problems]
            if split == "test" and len(listing.places) != clip_set.num_test:
                count, published = len(listing.places), clip_set.num_test
                problems.append(f"it has {count:,} test images, {published:,} are published")
            if problems:
                raise DataError(f"What was fetched is not {name} as published: {problems[0]}")
    return target
