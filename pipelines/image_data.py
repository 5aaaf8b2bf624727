"""Prepare the images of the CLIP sets for a run: found, checked, and decoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluators.clip_sets import CLIP_SETS, ClipSet
from evaluators.clip_sets.layouts import list_images, set_folder
from evaluators.clip_sets.listing import Listing, named
from evaluators.clip_sets.prepare import (
    decode_part,
    finish_preparation,
    parts_of,
    prepared_name,
    start_preparation,
)
from evaluators.quickstart_images import QUICKSTART_TASKS
from nan_merge.errors import ConfigError, DataError
from nan_merge.publish import publish_folder
from nan_merge.tasks import Task
from pipelines.config import RunConfig
from pipelines.image_towers import image_size
from pipelines.language_benchmarks import DATA_VARIABLE, named_folder
from pipelines.quickstart_data import data_folder, prepare_sets
from pipelines.workers import Workers


@dataclass(frozen=True)
class PreparedSets:
    """Image sets, ready to be evaluated on.

    Attributes:
        paths: Set -> folder of its prepared images.
        notes: What a reader of the scores should know of the data.
    """

    paths: dict[str, Path]
    notes: tuple[str, ...]


def prepare_image_sets(
    config: RunConfig, names: Sequence[str], split: str, clip: Path, workers: Workers
) -> PreparedSets:
    """The images of a run's tasks, made here or found in the folder of data.

    Args:
        config: The run.
        names: Of image tasks, all of one kind.
        split: ``train`` or ``test``.
        clip: Folder of the whole pretrained CLIP, for whose size images are prepared.
        workers: Where it is done.

    Raises:
        ConfigError: If no folder of data is named.
        DataError: If a set is missing, or has classes or images that cannot be used; all are named.
        OutputError: If the disk is full or not writable.
    """
    kept = data_folder(config.cache)
    if all(name in QUICKSTART_TASKS for name in names):
        return PreparedSets(prepare_sets(names, split, config.seed, kept, workers), ())
    sets = [config.evaluate.clip_set(name) for name in names]
    return prepare_clip_sets(sets, image_size(clip), config.evaluate.data, kept, workers, split)


def prepare_clip_sets(
    sets: Sequence[ClipSet],
    size: int,
    data: Path | None,
    kept: Path,
    workers: Workers,
    split: str = "test",
) -> PreparedSets:
    """Decode the images of sets to a model's size, unless an earlier run did.

    Args:
        sets: Which.
        size: Height and width of the model's images in pixels.
        data: Folder with a folder for each set; ``$NAN_MERGE_DATA`` if None.
        kept: Where prepared images are kept.
        workers: Where they are decoded.
        split: ``test`` or ``train``.

    Raises:
        ConfigError: If no folder of data is named.
        DataError: If a set is missing, or has classes or images that cannot be used; all are named.
        OutputError: If the disk is full or not writable.
    """
    listings = list_sets(sets, data, split)
    paths: dict[str, Path] = {}
    for clip_set in sets:
        name, listing = clip_set.name, listings[clip_set.name]
        paths[name] = target = kept / prepared_name(clip_set, listing, split, size)
        if target.is_dir():
            continue
        folder = _folder_of(name, data)
        with publish_folder(target, keep_partial=True) as staging:
            start_preparation(staging, len(listing.places), size)
            tasks = [
                Task(
                    f"{name}, images {start} to {stop}",
                    decode_part,
                    (clip_set, folder, split, size, staging.absolute(), start, stop),
                    stop - start,
                )
                for start, stop in parts_of(len(listing.places))
            ]
            found = workers.run_tasks(f"Decoding {name}", tasks)
            _refuse([problem for problems in found for problem in problems])
            finish_preparation(clip_set, listing, split, staging)
    return PreparedSets(paths, tuple(_notes(sets, listings, split)))


def list_sets(
    sets: Sequence[ClipSet], data: Path | None, split: str = "test"
) -> dict[str, Listing]:
    """Find the images of sets; for arguments and errors see `prepare_clip_sets`."""
    listings: dict[str, Listing] = {}
    problems: list[str] = []
    for each in sets:
        try:
            listings[each.name] = list_images(each, _folder_of(each.name, data), split)
            problems += listings[each.name].problems
        except DataError as error:
            problems.append(str(error))
    _refuse(problems)
    return listings


def _folder_of(name: str, data: Path | None) -> Path:
    parent = named_folder(data)
    if parent is None:
        raise ConfigError(
            f"Where is the data of {name}? Name a folder with one for each set under "
            f"`evaluate.data`, or set {DATA_VARIABLE}."
            + (
                f" `nan-merge data fetch {name} DIR` gets it where there is a hub."
                if name in CLIP_SETS
                else ""
            )
        )
    folder = set_folder(name, parent)
    if folder is None:
        raise DataError(f"There is no folder {parent / name} with the images of {name}.")
    return folder.absolute()


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        more = f"\n({len(problems) - 20} more problems)" if len(problems) > 20 else ""
        raise DataError("\n".join(problems[:20]) + more)


def _notes(sets: Sequence[ClipSet], listings: Mapping[str, Listing], split: str) -> list[str]:
    notes = [f"{name}: {note}." for name, listing in listings.items() for note in listing.notes]
    other = [
        f"{each.name} {len(listings[each.name].places):,} of {each.num_test:,}"
        for each in sets
        if split == "test" and len(listings[each.name].places) != each.num_test > 0
    ]
    if other:
        what = named("Other numbers of test images than those published:", other)
        notes.append(f"{what}. Such scores do not compare with published ones.")
    return notes
