"""Pixels are open_clip's, bit for bit; what cannot be decoded is told."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from evaluators.backends.clip import build_clip, normalise_pixels
from evaluators.clip_sets import pictures
from evaluators.clip_sets.pictures import fit_picture, open_picture, picture_digest
from evaluators.torchvision_repair import repair
from nan_merge.errors import DataError

repair()
open_clip = pytest.importorskip("open_clip")
Image = pytest.importorskip("PIL.Image")

MODES = ("RGB", "L", "LA", "P", "CMYK", "RGBA", "1", "YCbCr")
SIZES = ((300, 400), (28, 28), (224, 224), (225, 333), (1000, 37), (32, 500))


def noise(height: int, width: int, mode: str):
    pixels = np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), np.uint8)
    picture = Image.fromarray(pixels)
    return picture.convert("L").convert("LA") if mode == "LA" else picture.convert(mode)


def saved(picture, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", MODES)
def test_pixels_are_those_of_open_clip_bit_for_bit(mode):
    size = 32
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    theirs = open_clip.image_transform(size, is_train=False, mean=mean, std=std)
    tower = build_clip("nan-merge-mini", seed=0).tower
    for height, width in SIZES:
        picture = noise(height, width, mode)
        fitted = torch.from_numpy(fit_picture(picture, size).copy())
        ours = normalise_pixels(fitted.permute(2, 0, 1)[None], tower)[0]
        assert torch.equal(ours, theirs(picture)), (height, width)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no picture of a known format"),
        (b"<html>not found</html>", "is no picture of a known format"),
        (saved(noise(40, 50, "RGB"))[:900], "is broken"),
        (saved(noise(40, 50, "RGB"), "JPEG")[:500], "is broken"),
        (saved(noise(1, 150, "RGB")), "a side at most 100 times the other"),
        (saved(Image.fromarray(np.zeros((9, 9), np.uint16))), "more than 8 bits a channel"),
    ],
)
def test_what_cannot_be_used_is_told_with_its_place(content, message):
    with pytest.raises(DataError, match=rf"^DTD/a\.jpg: .*{message}"):
        open_picture(content, "DTD/a.jpg")


def test_a_huge_picture_is_refused_before_it_is_decoded(monkeypatch):
    content = saved(noise(20, 20, "RGB"))
    monkeypatch.setattr(pictures, "MAX_PIXELS", 399)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(DataError, match="20 x 20 pixels"):
        open_picture(content, "x")


def test_a_bomb_that_pillow_refuses_itself_is_told(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"^x: .*pixels"):
        open_picture(saved(noise(20, 20, "RGB")), "x")


def test_a_digest_is_of_the_content_not_of_the_file():
    picture = noise(30, 40, "RGB")
    png, bmp = open_picture(saved(picture), "x"), open_picture(saved(picture, "BMP"), "x")
    other = open_picture(np.asarray(picture), "x")
    assert picture_digest(png) == picture_digest(bmp) == picture_digest(other)
    assert picture_digest(png) != picture_digest(picture.transpose(Image.Transpose.ROTATE_180))
    assert picture_digest(picture) != picture_digest(noise(40, 30, "RGB"))
