"""The eight image sets on which CLIP's fine-tunes are merged: classes, prompts, splits, sizes.

The protocol is that of task arithmetic (Ilharco et al., arXiv 2212.04089), which the merging papers
follow: class names and prompts as in mlfoundations/task_vectors at 826a64c, ``src/datasets``; they
are the same in tanganke/fusion_bench at 54c9e8c, ``fusion_bench/tasks/clip_classification``. Splits
are those of task_vectors, issue 1, and of the sets' own papers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nan_merge.config_messages import did_you_mean
from nan_merge.errors import ConfigError

_CLASS_NAMES = Path(__file__).parent / "class_names"
SPLITS = ("train", "test")


@dataclass(frozen=True)
class ClipSet:
    """What the protocol says of one set.

    Attributes:
        name: As the papers write it; also the name of its folder.
        num_test: Published number of test images; 0 of a set that nobody published.
        templates: CLIP prompts with ``{}`` where the class name goes.
        repository: On the Hugging Face hub, with its images in parquet.
        parquet: There, the path of a split's files, with ``{split}`` for its name.
        num_test_of_class: Published number of test images of each class, where it is known.
        classes: Of a set of one's own: each class' name in prompts, and what data calls it.
    """

    name: str
    num_test: int
    templates: tuple[str, ...]
    repository: str
    parquet: str = "data/{split}-*.parquet"
    num_test_of_class: tuple[int, ...] = ()
    classes: tuple[tuple[str, str], ...] = ()

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels."""
        return tuple(cells[0] for cells in self._lines)

    @cached_property
    def class_of(self) -> Mapping[str, int]:
        """What a class is called in data, made alike by `plain`, -> its label."""
        return {plain(cell): label for label, cells in enumerate(self._lines) for cell in cells}

    @cached_property
    def _lines(self) -> Sequence[list[str]]:
        if self.classes:
            return [[name] if name == folder else [name, folder] for name, folder in self.classes]
        # Each line: the class name in prompts, and what its folder is called if that differs.
        text = (_CLASS_NAMES / f"{self.name}.tsv").read_text(encoding="utf-8")
        return [line.split("\t") for line in text.splitlines()]


def plain(name: str) -> str:
    """A class name without what differs between copies of a set: case, blanks, punctuation, zeros.

    >>> plain("polka-dotted"), plain("/a/airplane_cabin"), plain("00007")
    ('polkadotted', 'aairplanecabin', '7')
    """
    letters = "".join(each for each in name.lower() if each.isalnum())
    return str(int(letters)) if letters.isdecimal() else letters


def find_clip_set(name: str) -> ClipSet:
    """The set of this name.

    Raises:
        ConfigError: If there is none.
    """
    if name not in CLIP_SETS:
        near = did_you_mean(name, CLIP_SETS, ".")
        raise ConfigError(f"No image set is called {name!r}, have {', '.join(CLIP_SETS)}{near}")
    return CLIP_SETS[name]


def _views(kinds: Sequence[str], articles: Sequence[str]) -> tuple[str, ...]:
    sources = ("satellite", "aerial")
    return tuple(
        f"{source} {kind} of {article}{{}}."
        for article in articles
        for kind in kinds
        for source in sources
    )


_NUMBER = ('a photo of the number: "{}".',)
_CAR = ("a {}", "the {}", "my {}", "my dirty {}", "my clean {}", "my new {}", "my old {}")

CLIP_SETS: dict[str, ClipSet] = {
    each.name: each
    for each in (
        ClipSet(
            name="SUN397",
            num_test=19_850,
            templates=("a photo of a {}.", "a photo of the {}."),
            repository="tanganke/sun397",
            num_test_of_class=(50,) * 397,
        ),
        ClipSet(
            name="Cars",
            num_test=8_041,
            templates=(
                *(f"a photo of {each}." for each in _CAR[:3]),
                "i love my {}!",
                *(f"a photo of {each}." for each in _CAR[3:]),
            ),
            repository="tanganke/stanford_cars",
        ),
        ClipSet(
            name="RESISC45",
            num_test=6_300,
            templates=_views(("imagery", "photo", "view"), ("", "a ", "the ")),
            repository="tanganke/resisc45",
        ),
        ClipSet(
            name="EuroSAT",
            num_test=2_700,
            templates=tuple(
                f"a centered satellite photo of {article}{{}}." for article in ("", "a ", "the ")
            ),
            repository="tanganke/eurosat",
        ),
        ClipSet(
            name="SVHN",
            num_test=26_032,
            templates=_NUMBER,
            repository="ufldl-stanford/svhn",
            parquet="cropped_digits/{split}-*.parquet",
            num_test_of_class=(1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
        ),
        ClipSet(
            name="GTSRB",
            num_test=12_630,
            templates=tuple(
                f'a {kind} photo of a "{{}}" traffic sign.'
                for kind in ("zoomed in", "centered", "close up")
            ),
            repository="tanganke/gtsrb",
            num_test_of_class=(
                *(60, 720, 750, 450, 660, 630, 150, 450, 450, 480, 660, 420, 690, 720, 270),
                *(210, 150, 360, 390, 60, 90, 90, 120, 150, 90, 480, 180, 60, 150, 90),
                *(150, 270, 60, 210, 120, 390, 120, 60, 690, 90, 90, 60, 90),
            ),
        ),
        ClipSet(
            name="MNIST",
            num_test=10_000,
            templates=_NUMBER,
            repository="ylecun/mnist",
            parquet="mnist/{split}-*.parquet",
            num_test_of_class=(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
        ),
        ClipSet(
            name="DTD",
            num_test=1_880,
            templates=tuple(
                f"a photo of {article} {{}} {noun}."
                for article in ("a", "the")
                for noun in ("texture", "pattern", "thing", "object")
            ),
            repository="tanganke/dtd",
            num_test_of_class=(40,) * 47,
        ),
    )
}
"""By name, in the order of the papers' tables."""
