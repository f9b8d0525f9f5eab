"""Define what a dataset on disk gives to bootstrapping, whatever its layout.

    coco_lvis   COCO 2017 with LVIS v1 and COCO-Stuff as published: `pipeline.data.layouts.coco_lvis`
    coco        any COCO-format annotations, one file for train and one for val: `pipeline.data.layouts.coco`
    masks       images beside 8- or 16-bit PNG masks and a list of classes: `pipeline.data.layouts.png_masks`

docs/data.md shows them to users.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np

from pipeline.data.annotations.quarantine import Quarantine
from pipeline.data.annotations.validation import ImageEntry
from pipeline.data.labels.label_space import LabelSpace
from pipeline.data.layouts.splits import Splits
from pipeline.data.store.images import open_image
from pipeline.runtime.errors import DataError

LayoutName = Literal["coco_lvis", "coco", "masks"]
LAYOUTS = get_args(LayoutName)


class Layout(Protocol):
    """A dataset whose annotations were read.

    Attributes:
        label_space: its classes.
        paths: the files that decide about the result, for the manifest.
        quarantine: what checking found unusable.
        counts_frequencies: whether classes become rare, common or frequent by the images that show them;
            else the annotation files say.
    """

    label_space: LabelSpace
    paths: list[Path]
    quarantine: Quarantine
    counts_frequencies: bool

    def splits(self, holdout_fraction: float, holdout_seed: int) -> Splits:
        """Divide the images."""

    def content(self, image: ImageEntry) -> list[Region] | StoredMask:
        """Return what is annotated on an image; segmentations may still have to be read by `RowReader`."""


class Region(NamedTuple):
    """One annotation to rasterize.

    Args:
        class_id: the value of its pixels, 0 for unlabeled.
        segmentation: polygons [[x, y, x, y, ...], ...] in pixels, or RLE {"size": [height, width], "counts":
            run lengths or COCO's string}.
        where: names the annotation in errors.
        stuff: a background region, which things cover.
    """

    class_id: int
    segmentation: Any
    where: str
    stuff: bool = False


@dataclass(frozen=True)
class ClassMask:
    """The mask of an image, with its counts.

    Args:
        mask: (height, width) uint16 class ids, 0 = unlabeled.
        class_ids: those present, ascending, without the unlabeled.
        pixel_counts: the pixels of each.
        stuff_pixels: how many of them come from stuff annotations.
    """

    mask: np.ndarray
    class_ids: list[int]
    pixel_counts: list[int]
    stuff_pixels: int


LARGEST = 65_535
"""The largest pixel value of a 16-bit mask."""


@dataclass(frozen=True)
class StoredMask:
    """A mask that lies on disk as an image.

    Args:
        path: a PNG.
        class_ids: pixel value -> class id, 0 for unlabeled.
    """

    path: Path
    class_ids: dict[int, int]

    def read(self, height: int, width: int) -> ClassMask:
        """Read the mask and replace pixel values by class ids.

        Raises:
            DataError: unreadable, of another size than its image, in colors, or with an unlisted value.
        """
        values = self._values()
        if values.shape != (height, width):
            raise DataError(
                "a mask of another size than its image",
                where=self.path,
                found=f"{values.shape[1]} x {values.shape[0]} (width x height)",
                allowed=f"{width} x {height}",
                hint="export it at the image's size, without resampling",
            )
        counts = np.bincount(values.ravel(), minlength=1)
        table = np.zeros(len(counts), np.uint16)
        for value in np.flatnonzero(counts).tolist():
            if value not in self.class_ids:
                raise DataError(
                    "a pixel value that is not in the list of classes",
                    where=self.path,
                    found=f"{value}, on {counts[value]} pixels",
                    allowed=f"the {len(self.class_ids)} values of annotations/classes.csv",
                    hint="add it to the list, without a name if it means unlabeled",
                )
            table[value] = self.class_ids[value]
        pixels = np.bincount(table, counts)[1:].astype(np.int64)
        ids = np.flatnonzero(pixels)
        return ClassMask(table[values], (ids + 1).tolist(), pixels[ids].tolist(), 0)

    def _values(self) -> np.ndarray:
        """Return the (H, W) int32 pixel values."""
        hint = "every image needs a mask under its own name; make it again"
        with open_image(self.path, kind="mask", hint=hint) as opened:
            mode, pixels = opened.mode, np.asarray(opened)
        if mode not in ("L", "P", "I", "1") and not mode.startswith("I;16"):
            raise DataError(
                "a mask in colors",
                where=self.path,
                found=f"mode {mode}",
                allowed="8- or 16-bit gray, or a palette",
                hint="write class numbers instead of colors",
            )
        values: np.ndarray = pixels.astype(np.int32)  # at once: 16-bit arithmetic wraps
        if values.size and not 0 <= values.min() <= values.max() <= LARGEST:
            raise DataError(
                "a pixel value out of range", where=self.path, found=f"{values.min()} to {values.max()}"
            )
        return values
