"""Decide which way up an image is read where its EXIF data ask viewers to turn it.

Annotations lie either on the raster as it is stored (COCO, LVIS, OpenCV's masks) or on the picture as viewers
and most labeling tools show it. The file does not say which, but the annotation's size often does. One rule
for every layout: the frame whose size is the annotation's. Where both have that size (mirrored, upside down,
square) and the tag would move pixels, nothing decides, and the image is refused by name.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.runtime.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

ORIENTATION = 0x0112
TURNS = {
    2: "mirrored",
    3: "upside down",
    4: "mirrored upside down",
    5: "mirrored and a quarter turn",
    6: "a quarter turn",
    7: "mirrored and a quarter turn",
    8: "a quarter turn",
}
TAIL = 2**17
"""Bytes at the end of a PNG in which an EXIF chunk is looked for; some tools put it behind the pixels."""


class Frame(NamedTuple):
    """The size of the stored raster and how viewers turn it.

    Args:
        height: of the raster as stored, in pixels.
        width: of the raster as stored, in pixels.
        orientation: EXIF's, 1 to 8; 1 where there is none.
    """

    height: int
    width: int
    orientation: int

    @property
    def stored(self) -> tuple[int, int]:
        """(height, width) of the raster as stored."""
        return self.height, self.width

    @property
    def shown(self) -> tuple[int, int]:
        """(height, width) of the picture as viewers show it."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)

    @property
    def is_ambiguous(self) -> bool:
        """Whether the tag moves pixels and leaves the size as it is."""
        return self.orientation > 1 and self.stored == self.shown

    def require(self, size: tuple[int, int], where: str, *, of: str = "annotation") -> None:
        """Require that an annotation of this (height, width) fits one frame, and only one.

        Args:
            size: of the annotation.
            where: names the image in the error.
            of: what has this size, for the error: annotation or mask.

        Raises:
            DataError: it fits none, or both and these differ.
        """
        if size not in (self.stored, self.shown):
            found = _size(self.stored)
            if self.orientation > 1:
                found += f"; EXIF orientation {self.orientation}, shown as {_size(self.shown)}"
            raise DataError(
                f"an image of another size than its {of}",
                where=where,
                found=found,
                allowed=f"{_size(size)} as in the {of}",
                hint="take the original file; resized copies do not fit the annotations",
            )
        if self.is_ambiguous:
            raise DataError(
                "an image that viewers turn, which its annotation may or may not follow",
                where=where,
                found=f"EXIF orientation {self.orientation} ({TURNS[self.orientation]}); "
                f"{_size(size)} fits the picture as stored and as shown",
                allowed="an EXIF orientation of 1 or none, or sizes that tell the two apart",
                hint="annotated as viewers show it: turn its pixels (mogrify -auto-orient FILE); "
                "annotated as stored: remove the tag (exiftool -Orientation= FILE)",
            )


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]} (width x height)"


def read_frame(opened: Image.Image) -> Frame:
    """Return the frame of an image that was opened and not yet decoded."""
    orientation = _orientation(opened)
    width, height = opened.size
    if opened.format == "TIFF" and orientation >= 5:  # Pillow tells the size of TIFF as shown
        width, height = height, width
    return Frame(height, width, orientation)


def _orientation(opened: Image.Image) -> int:
    from PIL import Image

    try:
        exif = Image.Image.getexif(opened)  # the PNG plugin's own would decode the pixels
        if ORIENTATION not in exif and opened.format == "PNG" and (behind := _exif_behind_pixels(opened)):
            exif = Image.Exif()
            exif.load(behind)
        value = exif.get(ORIENTATION, 1)
    except Exception:  # damaged metadata, which viewers pass over too
        return 1
    return value if value in TURNS else 1


def _exif_behind_pixels(opened: Image.Image) -> bytes | None:
    """Return the content of a PNG's last EXIF chunk, found from the end of the file."""
    file = getattr(opened, "fp", None)
    if file is None:
        return None
    place = file.tell()
    try:
        start = max(file.seek(0, 2) - TAIL, 0)
        file.seek(start)
        tail = file.read(TAIL)
    finally:
        file.seek(place)
    at = tail.rfind(b"eXIf")
    if at < 4:
        return None
    length = int.from_bytes(tail[at - 4 : at], "big")
    content = tail[at + 4 : at + 4 + length]
    checksum = tail[at + 4 + length : at + 8 + length]
    return content if zlib.crc32(b"eXIf" + content).to_bytes(4, "big") == checksum else None


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a stored raster (H, W, ...) as viewers do for an EXIF orientation."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def turn_back(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo `turn`; a quarter turn one way is undone by one the other way."""
    return turn(pixels, {6: 8, 8: 6}.get(orientation, orientation))
