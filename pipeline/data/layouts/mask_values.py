"""Read the numbers that are stored in a mask, whatever its file shows them as.

Image libraries scale gray of 1, 2 and 4 bits to 0..255 and turn TIFF's white-is-zero around; here the stored
number comes back. A palette counts by its indices. But tools that make PNGs smaller write gray values as a
palette in an order of their own: where a palette of grays gives other numbers than its indices, the list of
classes must tell which of the two are meant.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.data.store.images import open_image
from pipeline.data.store.orientation import read_frame
from pipeline.data.store.pixels import BITS_PER_SAMPLE, PHOTOMETRIC
from pipeline.runtime.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

LOSSLESS = ("PNG", "TIFF", "BMP", "DIB", "GIF", "WEBP")
SAMPLE_FORMAT, COMPRESSION = 339, 259
LOSSY_TIFF = (6, 7, 34712, 50001)
"""Compressions: JPEG in two forms, JPEG 2000, WebP."""
AGAIN = "every image needs a mask under its own name; make it again"
SPREAD = {1: 255, 2: 85, 4: 17}
"""By bits a pixel: what libraries multiply the stored number by."""


def mask_values(path: Path, listed: Container[int] = frozenset()) -> np.ndarray:
    """Read the stored numbers of a mask: (H, W) int32.

    Args:
        path: a PNG, TIFF, BMP, GIF or lossless WebP; gray or with a palette.
        listed: the values that the classes have; they tell the meaning of a palette of grays.

    Raises:
        DataError: missing, unreadable, in colors, in a lossy format, or of two meanings.
    """
    with open_image(path, kind="mask", hint=AGAIN) as opened:
        require_mask_file(opened, path)
        if opened.mode in ("L", "LA", "La", "1"):
            return _gray(opened, path)
        if opened.mode == "P":
            return _indices(opened, path, listed)
        if opened.mode == "I" or opened.mode.startswith("I;16"):
            return np.asarray(opened).astype(np.int32)  # at once: 16-bit arithmetic wraps
        if opened.mode == "F":
            return _whole(np.asarray(opened), path)
        raise DataError(
            "a mask in colors" if "A" not in opened.mode else "a mask in colors or with transparency",
            where=path,
            found=f"mode {opened.mode}",
            allowed="gray of 1 to 32 bits, or a palette, without transparency",
            hint="write class numbers instead of colors; the layout masks also takes a list of colors",
        )


def require_mask_file(opened: Image.Image, path: Path) -> None:
    """Require a file that keeps every pixel of one raster as it is.

    Raises:
        DataError: a lossy format, several pictures in one file, an orientation for viewers.
    """
    if opened.format not in LOSSLESS or _is_lossy(opened, path):
        raise DataError(
            "a mask in a lossy format",
            where=path,
            found=f"{opened.format}, which changes class numbers and colors at edges",
            allowed="PNG, TIFF, BMP, GIF or lossless WebP",
            hint="export the masks again as PNG; a converted file keeps the wrong numbers",
        )
    if (number := getattr(opened, "n_frames", 1)) > 1:
        raise DataError(
            "a mask file of several pictures",
            where=path,
            found=f"{number} pages or frames",
            allowed="one",
            hint="save each as a file of its own",
        )
    if (orientation := read_frame(opened).orientation) != 1:
        raise DataError(
            "a mask that viewers turn",
            where=path,
            found=f"EXIF orientation {orientation}",
            allowed="an orientation of 1 or none",
            hint="remove the tag: exiftool -Orientation= FILE; then its size must fit its image",
        )


def _is_lossy(opened: Image.Image, path: Path) -> bool:
    if opened.format == "TIFF":
        return _tag(opened, COMPRESSION, 1) in LOSSY_TIFF
    if opened.format != "WEBP":
        return False
    with path.open("rb") as file:
        head = file.read(30)
        if head[12:16] != b"VP8X":
            return head[12:16] != b"VP8L"
        while len(chunk := file.read(8)) == 8:  # behind the first, which describes the picture
            if chunk[:4] in (b"VP8 ", b"VP8L"):
                return chunk[:4] == b"VP8 "
            file.seek(-(-int.from_bytes(chunk[4:], "little") // 2) * 2, 1)
    return True


def _tag(opened: Image.Image, tag: int, otherwise: int) -> int:
    """Return the first number of a TIFF tag."""
    value = getattr(opened, "tag_v2", {}).get(tag, otherwise)
    return int(value[0]) if isinstance(value, tuple) else int(value)


def _gray(opened: Image.Image, path: Path) -> np.ndarray:
    """Undo what Pillow does to gray of up to 8 bits."""
    bits, inverted = _bits(opened, path), _tag(opened, PHOTOMETRIC, 1) == 0
    signed = _tag(opened, SAMPLE_FORMAT, 1) == 2
    if opened.mode in ("LA", "La"):
        gray, alpha = np.moveaxis(np.asarray(opened), 2, 0)
        if (alpha != 255).any():
            raise DataError(
                "a mask with transparency",
                where=path,
                found=f"{int((alpha != 255).sum())} pixels are not opaque",
                allowed="numbers alone",
                hint="save it without an alpha channel; what is unlabeled needs a number of its own",
            )
        return gray.astype(np.int32)
    values = np.asarray(opened).astype(np.int32)
    if opened.mode == "1":
        return 1 - values if inverted else values
    values = 255 - values if inverted else values
    if signed:
        return values.astype(np.uint8).view(np.int8).astype(np.int32)
    return values // SPREAD[bits] if bits in SPREAD else values


def _bits(opened: Image.Image, path: Path) -> int:
    """Return the bits of a stored gray value."""
    if opened.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]  # behind signature, length, name, width and height
    return _tag(opened, BITS_PER_SAMPLE, 8) if opened.format == "TIFF" else 8


def _whole(values: np.ndarray, path: Path) -> np.ndarray:
    """Take whole numbers that were saved as floats."""
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int32)
    if not (np.isfinite(values) & (np.abs(values) < 2**24) & (whole == values)).all():
        raise DataError(
            "a mask of fractions",
            where=path,
            found=f"floats from {values.min():g} to {values.max():g}",
            allowed="whole numbers",
            hint="export class numbers, without resampling",
        )
    return whole


def _indices(opened: Image.Image, path: Path, listed: Container[int]) -> np.ndarray:
    """Return palette indices, or the grays that they stand for where only these are in the list."""
    indices = np.asarray(opened).astype(np.int32)
    colors = np.array(opened.getpalette("RGB") or [], np.int32).reshape(-1, 3)
    used = np.unique(indices)
    if not len(colors) or used[-1] >= len(colors) or (colors != colors[:, :1]).any():
        return indices  # a palette with a color in it was made on purpose
    grays = colors[:, 0]
    shown = grays[used]
    if (shown == used).all() or len(np.unique(shown)) < len(used):
        return indices
    if not all(int(value) in listed for value in shown):
        return indices
    if not all(int(value) in listed for value in used):
        return grays[indices]
    changed = used[shown != used][0]
    raise DataError(
        "a palette of grays that could mean two sets of numbers",
        where=path,
        found=f"index {changed} is shown as gray {grays[changed]}, and both are in the list of classes",
        allowed="gray without a palette, or a palette that shows each index as itself or in color",
        hint="tools that make PNGs smaller rewrite gray as a palette: save the masks as gray, "
        "or list colors (color,name) in place of values",
    )
