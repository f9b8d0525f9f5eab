"""Read masks whose classes are RGB colors."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.data.layouts.mask_values import AGAIN, require_mask_file
from pipeline.data.store.images import open_image
from pipeline.runtime.errors import DataError


def color_values(path: Path, colors: tuple[int, ...]) -> np.ndarray:
    """Replace the colors of a mask by their places in a list.

    Args:
        path: an image in colors; a palette counts by its colors. Transparency is not looked at.
        colors: 0xrrggbb each.

    Returns:
        (H, W) int32.

    Raises:
        DataError: missing, unreadable, gray, or with a color that is not in the list.
    """
    with open_image(path, kind="mask", hint=AGAIN) as opened:
        require_mask_file(opened, path)
        if opened.mode == "P" and "transparency" in opened.info:
            mode, pixels = "P", np.asarray(opened.convert("RGBA"), np.int32)
        else:
            mode, pixels = opened.mode, np.asarray(opened.convert("RGB"), np.int32)
    if mode not in ("RGB", "RGBA", "P"):
        raise DataError(
            "a mask without colors",
            where=path,
            found=f"mode {mode}",
            allowed="RGB, RGBA or a palette",
            hint="list values in place of colors: value,name",
        )
    packed = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    listed, order = np.unique(np.array(colors, np.int32), return_index=True)
    places = np.searchsorted(listed, packed).clip(max=len(listed) - 1)
    unknown = packed[listed[places] != packed]
    if unknown.size:
        values, counts = np.unique(unknown, return_counts=True)
        most = int(counts.argmax())
        raise DataError(
            "a color that is not in the list of classes",
            where=path,
            found=f"#{values[most]:06x}, on {counts[most]} pixels, and {len(values) - 1} other colors",
            allowed=f"the {len(colors)} listed colors",
            hint="add it to the list, without a name if it means unlabeled; "
            "many unlisted colors come of a lossy format or of resampling",
        )
    return order.astype(np.int32)[places]
