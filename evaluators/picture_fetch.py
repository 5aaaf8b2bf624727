"""Fetch questions about pictures: parquet of the hub, and what G-LLaVA asks of GeoQA.

MathVista, We-Math and AI2D lie on the hub as parquet with their pictures. Of GeoQA's test the
questions and answers are in G-LLaVA's repository (playground/data) and the pictures in an archive
of its authors on the hub, of which only the pictures that are asked about are unpacked.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path

from evaluators.benchmarks.files import read_json_lines, text_field
from evaluators.benchmarks.geoqa import ANSWERS, QUESTIONS
from evaluators.benchmarks.wemath_domains import NODES
from evaluators.data_fetch import download, refuse_other, snapshot
from evaluators.picture_check import KNOWN_FILES
from evaluators.pictures import MAX_BYTES, inside
from nan_merge.errors import DataError

GEOQA_COMMIT = "daea277b9119e44710532263de62723f2c6e3c67"
GEOQA_ADDRESS = f"https://raw.githubusercontent.com/pipilurj/G-LLaVA/{GEOQA_COMMIT}/playground/data"
ARCHIVE = "images.zip"
_ORIGINALS = (
    "GeoQA's own files (test.pk in data.zip of github.com/chen-judge/GeoQA) do as well: "
    "`nan-merge data convert-geoqa test.pk DIR/geoqa` makes a table of them."
)


@dataclass(frozen=True)
class Place:
    """Where a benchmark lies on the hub.

    Attributes:
        repository: Its id.
        revision: A commit that is known to hold it; None for the main branch.
        patterns: Of the files that are needed.
    """

    repository: str
    revision: str | None
    patterns: tuple[str, ...]


PLACES: Mapping[str, Place] = {
    "mathvista": Place(
        "AI4Math/MathVista",
        "2b6ad69445fbb5695c9b165475e8decdbeb97747",
        ("data/testmini-*.parquet",),
    ),
    "wemath": Place(
        "We-Math/We-Math",
        "527c44d4d94c4e3c7c98157460146a8b18c8420a",
        ("data/testmini-*.parquet", NODES),
    ),
    "ai2d": Place(
        "lmms-lab/ai2d", "7f7fbf8edcc628605d9e48da01c50b3cc5b3d02d", ("data/test-*.parquet",)
    ),
    "geoqa": Place("Luckyjhg/Geo170K", None, (ARCHIVE,)),
}


def write_pictures(
    benchmark: str, folder: Path, revision: str | None = None, address: str | None = None
) -> None:
    """Write a benchmark of pictures into a folder, in a layout that its reader knows.

    Args:
        benchmark: mathvista, wemath, ai2d or geoqa.
        folder: An empty one.
        revision: Of the hub's repository, instead of the one in `PLACES`.
        address: Where the questions and answers of geoqa lie, if not at G-LLaVA's repository.

    Raises:
        DataError: If the hub or the address cannot be reached, or they lack a file.
        OutputError: If the disk with the hub's cache is full.
    """
    place = PLACES[benchmark]
    if benchmark == "geoqa":
        try:
            _write_geoqa(folder, place, revision, address or GEOQA_ADDRESS)
        except DataError as error:
            raise DataError(f"{error} {_ORIGINALS}") from error
        return
    for file in _files(place, revision):
        shutil.copyfile(file, folder / file.name)


def _files(place: Place, revision: str | None) -> list[Path]:
    """The files of a place, in the hub's cache."""
    revision = revision or place.revision
    source = snapshot(place.repository, list(place.patterns), revision)
    files: list[Path] = []
    for pattern in place.patterns:
        found = sorted(source.glob(pattern))
        if not found:
            of = f" at {revision}" if revision else ""
            raise DataError(
                f"{place.repository} on the hub{of} has no {pattern}. Name another --revision."
            )
        files += found
    return files


def _write_geoqa(folder: Path, place: Place, revision: str | None, address: str) -> None:
    for name in (QUESTIONS, ANSWERS):
        content = download(f"{address}/{name}")
        refuse_other(content, KNOWN_FILES["geoqa", name][1], f"{address}/{name}")
        (folder / name).write_bytes(content)
    names = [
        text_field(where, record, "image") for where, record in read_json_lines(folder / QUESTIONS)
    ]
    (archive,) = _files(place, revision)
    take_pictures(archive, names, folder)


def take_pictures(archive: Path, names: Sequence[str], folder: Path) -> None:
    """Unpack pictures of an archive, and nothing else of it.

    Args:
        archive: A zip file, in which the pictures may lie in a folder, such as ``images/``.
        names: Of the pictures, within that folder and within ``folder``.
        folder: Where they go.

    Raises:
        DataError: If the archive is damaged or encrypted, lacks a picture, or one is too large.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            start = _start_of(opened.namelist(), names, archive)
            for name in dict.fromkeys(names):
                target = inside(folder, str(archive), name)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(_content(opened, start + name, archive))
    # Encryption and unknown methods of compression raise RuntimeError and NotImplementedError.
    except (zipfile.BadZipFile, zlib.error, EOFError, LZMAError, RuntimeError) as error:
        raise DataError(
            f"{archive}: is damaged or no archive that can be read ({error}). Remove "
            f"{archive.resolve()} and run the same command again."
        ) from error


def _start_of(members: Sequence[str], names: Sequence[str], archive: Path) -> str:
    """What all names begin with in the archive; the shortest, where there are several such."""
    known = set(members)
    starts = [each.removesuffix(names[0]) for each in members if _ends_with(each, names[0])]
    for start in sorted(starts, key=len):
        if all(start + name in known for name in names):
            return start
    if not starts:
        raise DataError(f"{archive}: has no {names[0]}.")
    start = min(starts, key=len)
    missing = [start + name for name in names if start + name not in known]
    raise DataError(f"{archive}: lacks {len(missing)} of {len(names)} images, first {missing[0]}.")


def _ends_with(member: str, name: str) -> bool:
    return f"/{member}".endswith(f"/{name}")


def _content(opened: zipfile.ZipFile, member: str, archive: Path) -> bytes:
    with opened.open(member) as file:
        content = file.read(MAX_BYTES + 1)  # whatever size its header claims
    if len(content) > MAX_BYTES:
        raise DataError(f"{archive}: {member} has more than {MAX_BYTES:,} bytes")
    return content
