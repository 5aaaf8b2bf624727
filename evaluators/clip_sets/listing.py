"""What is in the folder of an image set: images and labels, before any image is decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evaluators.clip_sets import ClipSet, plain
from nan_merge.config_messages import did_you_mean

MAX_NAMED = 5  # of many problems of one kind


@dataclass(frozen=True)
class Listing:
    """The images of one split of one set, wherever they lie.

    Attributes:
        layout: What kind of folder it is.
        files: That hold images and labels; their sizes and times tell whether the set changed.
        places: Where each image lies, for messages.
        labels: Of each image; indices into the set's class names.
        read: Content of the image with this index: an encoded file, or uint8 pixels.
        problems: What is wrong; empty if the set can be used.
        notes: What is odd but was mended, or cannot be checked.
    """

    layout: str
    files: tuple[Path, ...]
    places: Sequence[str]
    labels: Sequence[int]
    read: Callable[[int], bytes | np.ndarray]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def with_findings(self, problems: Iterable[str], notes: Iterable[str] = ()) -> Listing:
        """The same with more problems and notes."""
        found = (*self.problems, *problems), (*self.notes, *notes)
        return replace(self, problems=found[0], notes=found[1])


def list_files(layout: str, lists: Iterable[Path], images: Sequence[tuple[Path, int]]) -> Listing:
    """A listing of images that are files of their own.

    Args:
        layout: What kind of folder it is.
        lists: Files that name images or labels.
        images: Each image's file and label.
    """
    paths = [path for path, _ in images]
    missing = [path for path in paths if not path.is_file()]
    problems = [named("there is no file", missing)] if missing else []
    return Listing(
        layout=layout,
        files=(*lists, *paths),
        places=[str(path) for path in paths],
        labels=[label for _, label in images],
        read=lambda index: paths[index].read_bytes(),
        problems=tuple(problems),
    )


def match_classes(clip_set: ClipSet, names: Sequence[str], where: str) -> tuple[list[int], str]:
    """Labels of the classes that data names, and what is wrong with the names, or "".

    Names are matched, not positions: a folder that sorts 10 before 2 means the same classes.
    """
    known = clip_set.class_of
    unknown = [name for name in names if plain(name) not in known]
    if unknown:
        near = did_you_mean(unknown[0], clip_set.class_names)
        return [], f"{where}: {named(f'{clip_set.name} has no class', unknown)}{near}"
    labels = [known[plain(name)] for name in names]
    if len(set(labels)) < len(labels):
        twice = sorted({name for name in names if labels.count(known[plain(name)]) > 1})
        return [], f"{where}: {named('one class has several names', twice)}"
    return labels, ""


def missing_classes(clip_set: ClipSet, labels: Sequence[int]) -> list[str]:
    """A problem if classes have no image: accuracy without them would be another number."""
    there = set(labels)
    missing = [name for label, name in enumerate(clip_set.class_names) if label not in there]
    if not missing:
        return []
    of = f"{len(missing)} of {len(clip_set.class_names)} classes"
    return [f"{clip_set.name}: {named(f'{of} have no image', missing)}"]


def named(what: str, things: Sequence[object]) -> str:
    """A problem and the first things that have it.

    >>> named("there is no file", ["a.png", "b.png"])
    'there is no file a.png, b.png'
    """
    more = f" and {len(things) - MAX_NAMED} more" if len(things) > MAX_NAMED else ""
    return f"{what} {', '.join(str(each) for each in things[:MAX_NAMED])}{more}"
