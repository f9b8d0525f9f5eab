"""Define what a dataset on disk gives to bootstrapping, whatever its layout.

    coco_lvis   COCO 2017 with LVIS v1 and COCO-Stuff as published: `pipeline.data.layouts.coco_lvis`
    coco        any COCO-format annotations, one file for train and one for val: `pipeline.data.layouts.coco`
    masks       images beside masks, and a list of values or colors: `pipeline.data.layouts.png_masks`
    cityscapes  gtFine and leftImg8bit as unpacked: `pipeline.data.layouts.cityscapes`
    voc         Pascal VOC 2012, with SBD where wanted: `pipeline.data.layouts.voc`
    ade20k      SceneParse150: `pipeline.data.layouts.ade20k`
    cocostuff10k  COCO-Stuff 10k v1.1: `pipeline.data.layouts.cocostuff10k`
    parquet     a Hugging Face dataset with columns of images and masks: `pipeline.data.layouts.parquet`

The last six list one mask file per image and return a `pipeline.data.layouts.paired.PairedLayout`, as a new
dataset would. docs/data.md shows all layouts to users.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np

from pipeline.data.annotations.quarantine import Quarantine
from pipeline.data.annotations.validation import ImageEntry
from pipeline.data.labels.label_space import LabelSpace
from pipeline.data.layouts.mask_values import mask_values
from pipeline.data.layouts.splits import Splits
from pipeline.runtime.errors import DataError

LayoutName = Literal["coco_lvis", "coco", "masks", "cityscapes", "voc", "ade20k", "cocostuff10k", "parquet"]
LAYOUTS = get_args(LayoutName)


@dataclass(frozen=True)
class LayoutOptions:
    """Choices that concern a single layout.

    Args:
        voc_augmented: train on SBD's masks too, as the field's 10,582 images.
        cocostuff_classes: 171 classes that occur, or 182 with the eleven that never do.
    """

    voc_augmented: bool = False
    cocostuff_classes: int = 171

    def of(self, layout: str) -> dict[str, object]:
        """Return the choices that concern this layout, for the manifest."""
        prefix = {"voc": "voc_", "cocostuff10k": "cocostuff_"}.get(layout)
        return {} if prefix is None else {k: v for k, v in vars(self).items() if k.startswith(prefix)}


DEFAULT_OPTIONS = LayoutOptions()


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

    def looked_for(self, image: ImageEntry) -> list[int] | None:
        """Return the ids of the classes that were looked for in an image; None where all are everywhere."""

    def missing_image(self, image: ImageEntry) -> DataError:
        """Return the error of a listed image that does not exist, with advice that fits the layout."""

    def choices(self) -> dict[str, object]:
        """Return what was decided when the dataset was read, for the manifest."""


def missing_file(root: Path, image: ImageEntry, hint: str) -> DataError:
    """Return the error of a listed image that does not exist, or of the folder that it should lie in."""
    path = root / (image.file or "")
    there = path.parent.is_dir()
    return DataError(
        "missing image" if there else "missing folder of images",
        where=path if there else path.parent,
        found=f"image {image.image_id} does not exist",
        hint=hint,
    )


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
BAND = 2**24
"""Pixels of a mask that are counted at once."""


def scaled_values(present: Sequence[int], listed: Container[int]) -> str:
    """Return advice where the values of a mask are those of the list, scaled to be seen, or the reverse."""
    largest = max(present)
    for factor in (255, 85, 17, 257):  # how 1, 2, 4 and 16 bits are shown
        if largest and all(value * factor in listed for value in present):
            return (
                f"the list has the values as viewers show them ({largest * factor} for the {largest} that is "
                f"stored): list the stored numbers, smaller by a factor of {factor}; or: "
            )
    step = math.gcd(*present)
    is_usual = step in (255, 128, 127, 85, 17, 257) or sum(value > 0 for value in present) > 1
    if step > 1 and is_usual and all(value // step in listed for value in present):
        return (
            f"the values look scaled to be seen, all by {step} ({largest} for {largest // step}): "
            "export the class numbers themselves; or: "
        )
    return ""


def _counts(values: np.ndarray) -> np.ndarray:
    """Count the pixels of each value, in bands of rows, since counting copies them to 64 bits."""
    counts = np.zeros(int(values.max(initial=0)) + 1, np.int64)
    rows = max(1, BAND // max(values.shape[1], 1))
    for first in range(0, len(values), rows):
        counts += np.bincount(values[first : first + rows].ravel(), minlength=len(counts))
    return counts


@dataclass(frozen=True)
class StoredMask:
    """A mask that lies on disk as an image.

    Args:
        path: the file, an image unless `values` reads another form.
        class_ids: pixel value -> class id, 0 for unlabeled.
        values: reads the pixel values of the file, (H, W) int32; None for the numbers of an image. A function
            of a module, as workers get it by name.
        listed: names the allowed values in errors.
        hint: says in errors what to do about a value that is not allowed.
    """

    path: Path
    class_ids: dict[int, int]
    values: Callable[[Path], np.ndarray] | None = None
    listed: str = "annotations/classes.csv"
    hint: str = "add it to the list, without a name if it means unlabeled"

    def numbers(self) -> np.ndarray:
        """Read the pixel values: (H, W) int32.

        Raises:
            DataError: missing, unreadable, or of another form.
        """
        return self.values(self.path) if self.values else mask_values(self.path, self.class_ids)

    def read(self, height: int, width: int) -> ClassMask:
        """Read the mask and replace pixel values by class ids.

        Raises:
            DataError: unreadable, of another size than its image, in colors, or with an unlisted value.
        """
        values = self.numbers()
        if values.size and not 0 <= values.min() <= values.max() <= LARGEST:
            raise DataError(
                "a pixel value out of range",
                where=self.path,
                found=f"{values.min()} to {values.max()}",
                allowed=f"0 to {LARGEST}",
                hint="number the classes and what is unlabeled from 0 on",
            )
        if values.shape != (height, width):
            raise DataError(
                "a mask of another size than its image",
                where=self.path,
                found=f"{values.shape[1]} x {values.shape[0]} (width x height)",
                allowed=f"{width} x {height}",
                hint="export it at the image's size, without resampling",
            )
        counts = _counts(values)
        table = np.zeros(len(counts), np.uint16)
        present = np.flatnonzero(counts).tolist()
        for value in present:
            if value not in self.class_ids:
                raise DataError(
                    "a pixel value that is not in the list of classes",
                    where=self.path,
                    found=f"{value}, on {counts[value]} pixels",
                    allowed=f"the {len(self.class_ids)} values of {self.listed}",
                    hint=scaled_values(present, self.class_ids) + self.hint,
                )
            table[value] = self.class_ids[value]
        pixels = np.bincount(table, counts)[1:].astype(np.int64)
        ids = np.flatnonzero(pixels)
        return ClassMask(table[values], (ids + 1).tolist(), pixels[ids].tolist(), 0)
