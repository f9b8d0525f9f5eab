"""Decode photographs to 8-bit RGB by one rule for training and prediction; nothing is clipped.

8 bits and fewer    as they are: gray, palette, CMYK and the like become RGB, transparency is dropped
16 bits, gray       divided by 257, rounded; 12 bits, where a TIFF says so, by 4095 / 255
16 bits, color      the upper eight bits
32 bits             numbers up to 65,535 as 16 bits
floats              0 to 1
anything else       refused by name: numbers beyond these, and those of 8 bits stored in 16 or 32
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.store.orientation import read_frame, turn, turn_back
from pipeline.runtime.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
"""Tags of TIFF."""


def is_deep(image: Image.Image) -> bool:
    """Whether gray values have more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def upright_pixels(image: Image.Image) -> np.ndarray:
    """Decode to (H, W, 3) uint8 RGB as viewers show the picture.

    Raises:
        DataError: numbers without a clear range.
    """
    frame, is_turned = read_frame(image), image.format == "TIFF"
    pixels = rgb_pixels(image)
    return pixels if is_turned else np.ascontiguousarray(turn(pixels, frame.orientation))


def pixels_of_size(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Decode to uint8 RGB as stored or as shown, whichever has the (height, width) of the annotation.

    Where neither has, the stored raster comes back, of another size than asked for.

    Raises:
        DataError: numbers without a clear range.
    """
    if image.format != "TIFF":
        pixels = rgb_pixels(image)
        if pixels.shape[:2] == size:
            return pixels
        frame = read_frame(image)
        return np.ascontiguousarray(turn(pixels, frame.orientation)) if frame.shown == size else pixels
    frame = read_frame(image)
    pixels = rgb_pixels(image)
    if pixels.shape[:2] == size:
        return pixels
    return np.ascontiguousarray(turn_back(pixels, frame.orientation))


def rgb_pixels(image: Image.Image) -> np.ndarray:
    """Decode to (H, W, 3) uint8 RGB in Pillow's frame: TIFF as shown, everything else as stored.

    Raises:
        DataError: numbers without a clear range.
    """
    if is_deep(image):
        gray = _eight_bits(image)
        return np.ascontiguousarray(np.repeat(gray[:, :, None], 3, axis=2))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of a direct conversion
    return np.array(image.convert("RGB"))


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Scale gray values of more than 8 bits: (H, W) uint8."""
    tags = getattr(image, "tag_v2", {})
    inverted = tags.get(PHOTOMETRIC) == 0  # Pillow turns white-is-zero only up to 8 bits
    highest = 4_095 if tuple(tags.get(BITS_PER_SAMPLE, ())) == (12,) else 65_535
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        scaled = np.rint(values * 255)
        return (255 - scaled if inverted else scaled).astype(np.uint8)
    if values.dtype.kind in "iu" and low >= 0 and high <= highest and not 0 < high <= 255:
        scaled = values.astype(np.uint32)
        scaled = highest - scaled if inverted else scaled
        return ((scaled * 255 + highest // 2) // highest).astype(np.uint8)
    kind = "floats" if values.dtype.kind == "f" else "whole numbers"
    raise DataError(
        "an image whose numbers have no clear range",
        where=getattr(image, "filename", None) or "the picture",
        found=f"{kind} from {low:g} to {high:g} (mode {image.mode})",
        allowed="8 bits; 16 bits from black at 0 to white at 65,535; or floats from 0 to 1",
        hint="scale them to one of these, all images of a dataset alike, and save again",
    )
