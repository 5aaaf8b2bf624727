"""Rendered text: ``letters`` (which capital?) and ``style`` (which cut of the font?).

The fonts are those that matplotlib ships. Train and test share no font: the serif cuts of DejaVu,
say, are only in test. A style with few test fonts has few sources; read its accuracy with that in
mind.
"""

from __future__ import annotations

import string
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.image_sets import LabelledImages
from evaluators.quickstart_images.scans import IMAGE_SIZE, NUM_TEST, NUM_TRAIN, missing_package
from nan_merge.errors import DataError

STYLES = ("regular", "bold", "italic", "bold italic")
# Split -> style -> font files.
FONTS: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "regular": ("DejaVuSans", "DejaVuSansMono", "STIXGeneral", "cmr10"),
        "bold": ("DejaVuSans-Bold", "DejaVuSansMono-Bold", "STIXGeneralBol", "cmb10"),
        "italic": ("DejaVuSans-Oblique", "DejaVuSansMono-Oblique", "STIXGeneralItalic"),
        "bold italic": (
            "DejaVuSans-BoldOblique",
            "DejaVuSansMono-BoldOblique",
            "STIXGeneralBolIta",
        ),
    },
    "test": {
        "regular": ("DejaVuSerif", "cmss10", "cmtt10"),
        "bold": ("DejaVuSerif-Bold",),
        "italic": ("DejaVuSerif-Italic", "cmti10"),
        "bold italic": ("DejaVuSerif-BoldItalic",),
    },
}
LETTER_SIZE = 26  # pixels per em: a capital is then about 19 pixels high
PAIR_SIZE = 17  # two letters must fit side by side
LARGEST_TURN = 5.0  # degrees
LARGEST_SHIFT = 2  # pixels


def build_letters(split: str, rng: np.random.Generator) -> LabelledImages:
    """Draw capitals in every font of the split."""
    fonts = [font for group in FONTS[split].values() for font in group]
    labels = _balanced_labels(split, len(string.ascii_uppercase), rng)
    chosen = [fonts[int(rng.integers(len(fonts)))] for _ in labels]
    images = [
        _render(string.ascii_uppercase[label], font, LETTER_SIZE, rng)
        for label, font in zip(labels, chosen, strict=True)
    ]
    return _labelled("letters", split, images, labels, chosen)


def build_style(split: str, rng: np.random.Generator) -> LabelledImages:
    """Draw two random capitals in a font of each style."""
    labels = _balanced_labels(split, len(STYLES), rng)
    images, chosen = [], []
    for label in labels:
        group = FONTS[split][STYLES[label]]
        font = group[int(rng.integers(len(group)))]
        pair = "".join(rng.choice(list(string.ascii_uppercase), size=2))
        images.append(_render(pair, font, PAIR_SIZE, rng))
        chosen.append(font)
    return _labelled("style", split, images, labels, chosen)


def _balanced_labels(split: str, num_classes: int, rng: np.random.Generator) -> np.ndarray:
    num_images = NUM_TRAIN if split == "train" else NUM_TEST
    return rng.permutation(np.arange(num_images) % num_classes).astype(np.int64)


def _labelled(
    task: str, split: str, images: list[np.ndarray], labels: np.ndarray, fonts: list[str]
) -> LabelledImages:
    sample_ids = (f"{task}/{split}/{index:05d}/{font}" for index, font in enumerate(fonts))
    return LabelledImages(np.stack(images), labels, tuple(sample_ids))


def _render(text: str, font_name: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw light text on a dark ground, turned and shifted a little; uint8 (32, 32, 3)."""
    from PIL import Image, ImageDraw

    font = _load_font(font_name, size)
    mask = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
    left, top, right, bottom = font.getbbox(text)
    shift_x, shift_y = rng.integers(-LARGEST_SHIFT, LARGEST_SHIFT + 1, size=2)
    # Centred by its ink: baselines and side bearings differ between fonts and would tell them.
    corner = (
        (IMAGE_SIZE - left - right) / 2 + float(shift_x),
        (IMAGE_SIZE - top - bottom) / 2 + float(shift_y),
    )
    ImageDraw.Draw(mask).text(corner, text, fill=255, font=font)
    turned = mask.rotate(rng.uniform(-LARGEST_TURN, LARGEST_TURN), Image.Resampling.BICUBIC)
    opacity = np.asarray(turned)[..., None] / 255.0
    ground, ink = rng.integers(0, 80, size=3), rng.integers(170, 256, size=3)
    return np.rint(ground + opacity * (ink - ground)).astype(np.uint8)


@cache
def _load_font(name: str, size: int) -> Any:
    from PIL import ImageFont

    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise missing_package("matplotlib")
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf"
    if not path.is_file():
        raise DataError(f"The installed matplotlib carries no font {name}.ttf.")
    return ImageFont.truetype(str(path), size)
