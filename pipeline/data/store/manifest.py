"""Describe a bootstrapped folder in its manifest, and count what each split holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.labels.label_space import LabelSpace
from pipeline.data.store.shards import MaskRow
from pipeline.runtime.errors import DataError
from pipeline.runtime.files import file_digest

FORMAT = "kiloseg bootstrapped dataset 1"
SPLITS = ("train", "holdout", "val")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An image that is in no split, and why."""

    image_id: int
    file: str
    split: str
    reason: str


@dataclass
class SplitCounts:
    """Images and pixels of a split; the arrays are (C + 1,) int64, indexed by class id, 0 for unlabeled.

    `stuff_pixels` are the labeled ones that were drawn from stuff annotations, whatever their class.
    """

    images: np.ndarray
    pixels: np.ndarray
    num_images: int = 0
    stuff_pixels: int = 0

    @classmethod
    def zero(cls, num_classes: int) -> SplitCounts:
        """Return counts of zero."""
        return cls(np.zeros(num_classes + 1, np.int64), np.zeros(num_classes + 1, np.int64))

    @property
    def labeled_pixels(self) -> int:
        """The pixels of any class."""
        return int(self.pixels[1:].sum())

    def add(self, row: MaskRow, stuff_pixels: int) -> None:
        """Count one image."""
        self.num_images += 1
        self.stuff_pixels += stuff_pixels
        self.images[row.class_ids] += 1
        self.pixels[row.class_ids] += row.pixel_counts
        self.pixels[0] += row.height * row.width - sum(row.pixel_counts)

    def merge(self, other: SplitCounts) -> None:
        """Add what was counted elsewhere."""
        self.num_images += other.num_images
        self.stuff_pixels += other.stuff_pixels
        self.images += other.images
        self.pixels += other.pixels


def is_bootstrapped(folder: Path) -> bool:
    """Whether `folder` is the output of `bootstrap`, of any version."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    name = manifest.get("format") if isinstance(manifest, dict) else None
    return isinstance(name, str) and name.rpartition(" ")[0] == FORMAT.rpartition(" ")[0]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a bootstrapped folder.

    Raises:
        DataError: nothing is there, or it is of another version.
    """
    if not is_bootstrapped(folder):
        raise DataError(
            "no bootstrapped dataset",
            where=folder,
            hint="make it: dvc repro bootstrap, or pipeline data bootstrap ROOT OUT",
        )
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if manifest["format"] != FORMAT:
        raise DataError(
            "a bootstrapped dataset of another version",
            where=folder,
            found=manifest["format"],
            allowed=FORMAT,
            hint="make it again: dvc repro bootstrap, or pipeline data bootstrap ROOT OUT",
        )
    return manifest


def describe(
    label_space: LabelSpace,
    choices: Mapping[str, object],
    sources: Sequence[Path],
    counts: Mapping[str, SplitCounts],
    shards: Mapping[str, list[dict[str, object]]],
    left_out: Sequence[LeftOut],
) -> dict[str, Any]:
    """Return the manifest as plain types.

    Args:
        label_space: the classes.
        choices: the options that shaped the result.
        sources: the annotation files, recorded by name, size and digest.
        counts: by split.
        shards: by split the files of masks: name and number of images.
        left_out: the images that are in no split.
    """
    return {
        "format": FORMAT,
        "num_classes": label_space.num_classes,
        **choices,
        "annotation_files": [_fingerprint(path) for path in sources],
        "splits": {split: _totals(counts[split]) | {"shards": shards[split]} for split in SPLITS},
        "left_out": [asdict(image) for image in left_out],
    }


def _totals(counts: SplitCounts) -> dict[str, object]:
    return {
        "images": counts.num_images,
        "pixels": int(counts.pixels.sum()),
        "labelled_pixels": counts.labeled_pixels,
        "classes_seen": int((counts.images[1:] > 0).sum()),
    }


def _fingerprint(path: Path) -> dict[str, object]:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": file_digest(path)}
