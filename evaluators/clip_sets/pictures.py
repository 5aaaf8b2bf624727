"""Decode one picture to the pixels that open_clip's preprocessing gives before it normalises.

open_clip scales the shorter side (bicubic, Pillow's), crops the centre, makes what is not RGB RGB,
and only then divides by 255 and normalises (open_clip/transform.py, image_transform). All up to the
division is 8-bit: kept as uint8, nothing of it is lost.
"""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

import numpy as np

from nan_merge.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 100_000_000
"""Larger pictures are refused: decoded, this one has 300 MB."""
MAX_RATIO = 100
"""Of the sides. Scaled by the shorter one, a thin strip would fill the memory."""
EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV")


def open_picture(content: bytes | np.ndarray, place: str) -> Image:
    """Open and decode a picture.

    Args:
        content: An encoded file, or uint8 pixels (height, width) or (height, width, 3).
        place: Where it lies, for messages.

    Raises:
        DataError: If it is broken, cut off, too large, or of more than 8 bits a channel.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(content, np.ndarray):
        return Image.fromarray(content)
    try:
        picture = Image.open(io.BytesIO(content))
        _refuse_size(*picture.size, place)
        picture.load()
    except UnidentifiedImageError as error:
        raise DataError(
            f"{place}: is no picture of a known format. Fetch it again, or remove it."
        ) from error
    except DataError:
        raise
    except Exception as error:  # a broken file fails wherever it likes
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{place}: is broken: {reason}. Fetch it again, or remove it.") from error
    if picture.mode not in EIGHT_BIT_MODES:
        raise DataError(
            f"{place}: has more than 8 bits a channel (Pillow's mode {picture.mode}), which "
            "open_clip would cut off. Save it with 8 bits."
        )
    return picture


def _refuse_size(width: int, height: int, place: str) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_RATIO * min(width, height):
        raise DataError(
            f"{place}: {width} x {height} pixels; pictures have at most {MAX_PIXELS:,}, and a side "
            f"at most {MAX_RATIO} times the other. Scale or crop it, or remove it if it is no "
            "picture of this set."
        )


def fit_picture(picture: Image, size: int) -> np.ndarray:
    """Scale, crop and make RGB as open_clip does: uint8 (size, size, 3)."""
    from PIL import Image

    width, height = picture.size
    shorter = min(width, height)
    scaled_size = (width * size // shorter, height * size // shorter)
    if scaled_size != picture.size:
        picture = picture.resize(scaled_size, Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in scaled_size)
    return np.asarray(picture.crop((left, top, left + size, top + size)).convert("RGB"))


def picture_digest(picture: Image) -> str:
    """64 bits of the decoded picture's content, in hexadecimal, whatever file it came in."""
    pixels = np.asarray(picture.convert("RGB"))
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=8)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()
