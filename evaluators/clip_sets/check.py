"""Check an image set: classes, counts, and whether every image can be decoded."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from evaluators.clip_sets import ClipSet
from evaluators.clip_sets.layouts import list_images
from evaluators.clip_sets.listing import Listing, named
from evaluators.clip_sets.pictures import open_picture, picture_digest
from nan_merge.errors import DataError


@dataclass(frozen=True)
class SetReport:
    """What was found of a set.

    Attributes:
        name: The set's.
        layout: What kind of folder it is.
        counts: Class name -> its test images, in the order of the labels.
        digest: SHA-256 of labels and decoded pictures, in hexadecimal, the same for every layout;
            None if some cannot be read.
        problems: What is wrong.
        notes: What is odd, but can be used.
    """

    name: str
    layout: str
    counts: dict[str, int]
    digest: str | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def check_set(clip_set: ClipSet, folder: Path, split: str = "test") -> SetReport:
    """Check one split of a set; every image is decoded, on all cores."""
    try:
        listing = list_images(clip_set, folder, split)
    except DataError as error:
        return SetReport(clip_set.name, "—", {}, None, (str(error),), ())
    found = Counter(listing.labels)
    counts = {name: found[label] for label, name in enumerate(clip_set.class_names)}
    pictures, broken = _decode_all(listing)
    problems = [*listing.problems, *broken]
    if split == "test" and not listing.problems:
        problems += _wrong_counts(clip_set, counts)
    digest = None
    if not broken and not listing.problems:
        lines = sorted(zip(pictures, listing.labels, strict=True))
        digest = hashlib.sha256(repr(lines).encode()).hexdigest()
    copies = sum(count - 1 for count in Counter(pictures).values())
    notes = [*listing.notes, *([f"{copies} images repeat others"] if copies else [])]
    return SetReport(clip_set.name, listing.layout, counts, digest, tuple(problems), tuple(notes))


def _decode_all(listing: Listing) -> tuple[list[str], list[str]]:
    """Digests of the pictures that can be decoded, and what is wrong with the others."""
    # Reading is left to one thread: a file of many images is read in its order.
    places: Sequence[str] = listing.places
    pictures: list[str] = []
    problems: list[str] = []

    def decode(index: int, content: object) -> str:
        return picture_digest(open_picture(content, places[index]))  # pyright: ignore[reportArgumentType]

    num_threads = os.cpu_count() or 1
    with ThreadPoolExecutor(num_threads) as threads:
        for start in range(0, len(places), 64):
            waiting = []
            for index in range(start, min(start + 64, len(places))):
                try:
                    waiting.append(threads.submit(decode, index, listing.read(index)))
                except (DataError, OSError) as error:
                    problems.append(f"{places[index]}: {error}")
            for each in waiting:
                try:
                    pictures.append(each.result())
                except DataError as error:
                    problems.append(str(error))
    return pictures, problems


def _wrong_counts(clip_set: ClipSet, counts: dict[str, int]) -> list[str]:
    total = sum(counts.values())
    if total != clip_set.num_test:
        return [f"{clip_set.name}: has {total:,} test images, {clip_set.num_test:,} are published"]
    published = zip(
        counts.items(), clip_set.num_test_of_class, strict=bool(clip_set.num_test_of_class)
    )
    wrong = [
        f"{name!r} {count:,} (published {expected:,})"
        for (name, count), expected in published
        if count != expected
    ]
    if not wrong:
        return []
    what = named("classes have other numbers of images than published:", wrong)
    return [f"{clip_set.name}: {what}. Are the labels in the order of the class names?"]
