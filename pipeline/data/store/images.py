"""Open images; whatever Pillow raises on a damaged file becomes a DataError that names it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.runtime.errors import DataError, KilosegError

if TYPE_CHECKING:
    from PIL import Image

LARGEST = 2**30
"""Pixels of an image: 3 GiB as RGB. Pillow alone refuses 179 million, and scans and mosaics are larger."""


@contextlib.contextmanager
def open_image(
    path: Path,
    *,
    kind: str = "image",
    where: str | None = None,
    hint: str = "take the file from its source again",
    missing: str | None = None,
) -> Iterator[Image.Image]:
    """Open an image for the block; its pixels are decoded when the block asks for them.

    Args:
        path: of the file.
        kind: what the file holds, for the error: image or mask.
        where: names the file in the error; by default its path.
        hint: the fix, for the error.
        missing: the fix where there is no such file, if it is another one.

    Raises:
        DataError: the file is missing, unreadable or too large, found on opening or in the block.
    """
    from PIL import Image, UnidentifiedImageError  # here, so that commands start without it

    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, 4 * LARGEST)  # only raised, so threads may race
    try:
        with Image.open(path) as opened:
            width, height = opened.size
            if width * height > LARGEST:
                raise DataError(
                    f"an {kind} that is too large" if kind[0] in "aeiou" else f"a {kind} that is too large",
                    where=where or path,
                    found=f"{width} x {height} (width x height), {width * height / 1e6:,.0f} million pixels",
                    allowed=f"{LARGEST / 1e6:,.0f} million pixels",
                    hint="cut it into tiles, and its mask alike",
                )
            yield opened
    except KilosegError:
        raise
    except Exception as error:  # Pillow raises nearly anything on damaged files
        if isinstance(error, UnidentifiedImageError) and path.stat().st_size:
            hint = f"{hint}; if other programs open it, convert it to PNG or JPEG"
        is_there = path.exists()
        raise DataError(
            f"unreadable {kind}" if is_there else f"missing {kind}",
            where=where or path,
            found=error,
            hint=hint if is_there else missing or hint,
        ) from error
