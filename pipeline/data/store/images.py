"""Open images; whatever Pillow raises on a damaged file becomes a DataError that names it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.runtime.errors import DataError, KilosegError

if TYPE_CHECKING:
    from PIL import Image


@contextlib.contextmanager
def open_image(
    path: Path,
    *,
    kind: str = "image",
    where: str | None = None,
    hint: str = "take the file from its source again",
) -> Iterator[Image.Image]:
    """Open an image for the block; its pixels are decoded when the block asks for them.

    Args:
        path: of the file.
        kind: what the file holds, for the error: image or mask.
        where: names the file in the error; by default its path.
        hint: the fix, for the error.

    Raises:
        DataError: the file is missing or unreadable, found on opening or in the block.
    """
    from PIL import Image  # here, so that commands start without it

    try:
        with Image.open(path) as opened:
            yield opened
    except KilosegError:
        raise
    except Exception as error:  # Pillow raises nearly anything on damaged files
        raise DataError(
            f"unreadable {kind}" if path.exists() else f"missing {kind}",
            where=where or path,
            found=error,
            hint=hint,
        ) from error
