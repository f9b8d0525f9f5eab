"""Make a mask as the reference implementation does, written anew after a description of its steps.

For each image: every annotation is decoded to a whole mask and added where the mask is still zero; whether
the image has stuff is looked up in a list of all images that have; stuff ids are renumbered in the whole
mask, one entry of the table after the other; what LVIS left free takes the stuff; the result is written
as a PNG. Its errors (8-bit masks, the previous image's stuff, renumbering in place) are not reproduced but
for the last, whose cost is part of the procedure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask


@dataclass(frozen=True)
class Annotated:
    """An image's LVIS and stuff annotations as (category id, segmentation)."""

    image_id: int
    height: int
    width: int
    things: Sequence[tuple[int, Any]]
    stuff: Sequence[tuple[int, Any]]


def draw_as_reference(
    image: Annotated, stuff_images: list[int], table: Mapping[int, int], path: Path, *, renumber: bool
) -> np.ndarray:
    """Draws one image and writes it to `path` as PNG.

    Args:
        image: what is annotated.
        stuff_images: ids of all images with stuff, as the list that it is looked up in.
        table: stuff category id -> class id.
        path: of the PNG.
        renumber: entry by entry over the whole mask, as the reference does, else as each is drawn.

    Returns:
        (H, W) int32 class ids.
    """
    height, width = image.height, image.width
    mask = np.zeros((height, width), np.int32)
    for category, segmentation in image.things:
        mask += (mask == 0) * (_decode(segmentation, height, width) * np.int32(category))
    if image.image_id in stuff_images:
        below = np.zeros((height, width), np.int32)
        for category, segmentation in image.stuff:
            value = np.int32(category if renumber else table[category])
            below += (below == 0) * (_decode(segmentation, height, width) * value)
        if renumber:
            for category, class_id in table.items():
                below[below == category] = class_id
        mask = np.where(mask == 0, below, mask)
    Image.fromarray(mask.astype(np.uint16)).save(path)
    return mask


def _decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    decoded: np.ndarray = coco_mask.decode(segmentation)
    return decoded
