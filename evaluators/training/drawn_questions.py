"""Questions about drawn squares, in the public layouts of four benchmarks about pictures.

A picture shows one to four squares of one colour in one quarter. What is asked: their colour, how
many there are, and where. The order of the options never changes, so that a letter is a class.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Skill = Literal["colour", "count", "place"]
SIZE = 56
OPTIONS: dict[Skill, tuple[str, ...]] = {
    "colour": ("red", "green", "blue", "yellow"),
    "count": ("1", "2", "3", "4"),
    "place": ("top left", "top right", "bottom left", "bottom right"),
}
QUESTIONS: dict[Skill, str] = {
    "colour": "What colour are the squares?",
    "count": "How many squares are there?",
    "place": "Where are the squares?",
}
_INKS = ((220, 40, 40), (40, 160, 60), (50, 80, 220), (230, 200, 40))


@dataclass(frozen=True)
class Scene:
    """A picture, and of each skill the place of the right option.

    Attributes:
        pixels: uint8 (SIZE, SIZE, 3).
        right: Skill -> place of the right option, from 0.
    """

    pixels: NDArray[np.uint8]
    right: Mapping[Skill, int]

    def letter(self, skill: Skill) -> str:
        """The right option's letter."""
        return "ABCD"[self.right[skill]]

    def png(self) -> bytes:
        """The picture as a file."""
        from PIL import Image

        content = io.BytesIO()
        Image.fromarray(self.pixels).save(content, "PNG")
        return content.getvalue()


def draw_scene(random: np.random.Generator) -> Scene:
    """A picture of its own."""
    colour, count, place = (int(random.integers(4)) for _ in range(3))
    pixels = np.empty((SIZE, SIZE, 3), np.uint8)
    pixels[:] = random.integers(225, 256, 3)
    ink = np.clip(np.array(_INKS[colour]) + random.integers(-20, 21, 3), 0, 255)
    left, top = 28 * (place % 2), 28 * (place // 2)
    for number in range(count + 1):
        x, y = left + 3 + 13 * (number % 2), top + 3 + 13 * (number // 2)
        side = int(random.integers(8, 11))
        pixels[y : y + side, x : x + side] = ink
    return Scene(pixels, {"colour": colour, "count": count, "place": place})


def write_drawn_benchmarks(folder: Path, num_samples: int, seed: int) -> None:
    """Write `mathvista`, `wemath`, `ai2d` and `geoqa` below a folder.

    Args:
        folder: Where their folders go.
        num_samples: Questions of each; of We-Math so many problems of three questions.
        seed: Of the pictures.
    """
    random = np.random.default_rng(seed)
    _write_table(folder / "ai2d" / "AI2D_TEST.tsv", ("colour", "place"), num_samples, random)
    _write_table(folder / "geoqa" / "geoqa_test.tsv", ("count",), num_samples, random)
    _write_mathvista(folder / "mathvista", num_samples, random)
    _write_wemath(folder / "wemath", num_samples, random)


def _write_table(
    path: Path, skills: Sequence[Skill], count: int, random: np.random.Generator
) -> None:
    rows: list[Sequence[str]] = [("index", "image", "question", "A", "B", "C", "D", "answer")]
    for number in range(count):
        scene, skill = draw_scene(random), skills[number % len(skills)]
        image = base64.b64encode(scene.png()).decode()
        asked = (QUESTIONS[skill], *OPTIONS[skill], scene.letter(skill))
        rows.append((str(number), image, *asked))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows(rows)


def _write_mathvista(folder: Path, count: int, random: np.random.Generator) -> None:
    records: dict[str, dict[str, Any]] = {}
    for number in range(count):
        scene, is_choice = draw_scene(random), number % 2 == 0
        skill: Skill = "colour" if is_choice else "count"
        records[str(number + 1)] = {
            "pid": str(number + 1),
            "question": QUESTIONS[skill],
            "image": _save(folder, f"images/{number + 1}.png", scene),
            "choices": list(OPTIONS[skill]) if is_choice else None,
            "unit": None,
            "precision": None,
            "answer": OPTIONS[skill][scene.right[skill]],
            "question_type": "multi_choice" if is_choice else "free_form",
            "answer_type": "text" if is_choice else "integer",
            "metadata": {"task": skill, "skills": []},
        }
    (folder / "testmini.json").write_text(json.dumps(records), encoding="utf-8")


def _write_wemath(folder: Path, count: int, random: np.random.Generator) -> None:
    records: list[dict[str, str]] = []
    parts: tuple[tuple[str, Skill], ...] = (("1", "colour"), ("2", "count"), ("multi", "place"))
    for number in range(count):
        scene = draw_scene(random)
        for part, skill in parts:
            listed = zip("ABCD", OPTIONS[skill], strict=True)
            records.append(
                {
                    "ID": f"2steps-{number}",
                    "key": f"2steps_{part}",
                    "question": QUESTIONS[skill],
                    "option": "; ".join(f"{label}. {each}" for label, each in listed),
                    "answer": scene.letter(skill),
                    "image_path": _save(folder, f"2steps/{number}-{part}.png", scene),
                }
            )
    (folder / "testmini.json").write_text(json.dumps(records), encoding="utf-8")


def _save(folder: Path, name: str, scene: Scene) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(scene.png())
    return name
