"""Read VOC's masks by the colors of its palette, where a file has these colors in another order.

Tools that make PNGs smaller sort palettes anew and change the indices with them. VOC's palette is published
and has 256 different colors, so each color says which class was meant.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.data.layouts.mask_values import AGAIN, mask_values
from pipeline.data.store.images import open_image

LISTED = (*range(21), 255)


def voc_palette() -> np.ndarray:
    """Return the (256, 3) colors: the bits of an index, from the lowest, go to red, green, blue in turn."""
    index = np.arange(256)[:, None]
    colors = np.zeros((256, 3), np.int64)
    for bit in range(8):
        colors |= ((index >> 3 * bit + np.arange(3)) & 1) << 7 - bit
    return colors


def voc_values(path: Path) -> np.ndarray:
    """Read a mask of VOC: (H, W) int32.

    Raises:
        DataError: see `mask_values`.
    """
    indices = mask_values(path, LISTED)
    with open_image(path, kind="mask", hint=AGAIN) as opened:
        colors = opened.getpalette("RGB") if opened.mode == "P" else None
    if not colors:
        return indices
    place = {tuple(color): number for number, color in enumerate(voc_palette().tolist())}
    numbers = [place.get(tuple(colors[start : start + 3]), -1) for start in range(0, len(colors), 3)]
    used = np.unique(indices)
    if used[-1] >= len(numbers) or any(numbers[index] < 0 for index in used):
        return indices  # a palette of somebody's own
    return np.array(numbers, np.int32)[indices]
