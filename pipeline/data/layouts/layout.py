"""The ways in which a dataset may lie on disk; what comes out of each looks the same to bootstrapping.

    coco_lvis   COCO 2017 with LVIS v1 and COCO-Stuff as published: `pipeline.data.official_layout`
    coco        any COCO-format annotations, one file for train and one for val: `pipeline.data.coco_layout`
    masks       images beside 8- or 16-bit PNG masks and a list of classes: `pipeline.data.masks_layout`

docs/data.md shows them to users.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, get_args

from pipeline.data.annotations import ImageEntry
from pipeline.data.coco_layout import CocoLayout
from pipeline.data.label_space import LabelSpace
from pipeline.data.masks import Shape
from pipeline.data.masks_layout import MasksLayout, StoredMask
from pipeline.data.official_layout import OfficialLayout
from pipeline.data.parallel import WorkerPool
from pipeline.data.quarantine import Quarantine
from pipeline.data.splits import Splits
from pipeline.errors import DataProblem, UsageProblem

LayoutName = Literal["coco_lvis", "coco", "masks"]
LAYOUTS = get_args(LayoutName)


class Layout(Protocol):
    """A dataset that was read.

    Attributes:
        label_space: its classes.
        paths: the files that decide about the result, for the manifest.
        quarantine: what checking found unusable.
        counts_frequencies: classes become rare, common or frequent by the images that show them; else the
            annotation files say.
    """

    label_space: LabelSpace
    paths: list[Path]
    quarantine: Quarantine
    counts_frequencies: bool

    def splits(self, holdout_fraction: float, holdout_seed: int) -> Splits:
        """Divides the images."""

    def content(self, image: ImageEntry) -> list[Shape] | StoredMask:
        """What is annotated on an image; segmentations may still have to be read by `RowReader`."""


def open_layout(
    name: str,
    root: Path,
    keep_classes: Sequence[str | int] | None = None,
    pool: WorkerPool | None = None,
) -> Layout:
    """Reads a dataset's annotations.

    Args:
        name: coco_lvis, coco or masks.
        root: the dataset's folder.
        keep_classes: names or class ids of the whole label space to keep; None for all.
        pool: processes that share the reading, see `pipeline.data.parallel`.

    Raises:
        DataProblem: missing or damaged files, or files that contradict each other.
        UsageProblem: an unknown layout or class to keep.
    """
    if name not in LAYOUTS:
        raise UsageProblem(
            "unknown layout", where="data.layout", found=repr(name), allowed=", ".join(LAYOUTS)
        )
    if not root.is_dir():
        raise DataProblem(
            "no such dataset folder",
            where=root,
            allowed="a folder with images and annotations/, see docs/data.md",
            mend="name the right folder in data.root; data/tiny is made by dvc repro",
        )
    if name == "coco":
        return CocoLayout(root, keep_classes, pool)
    if name == "masks":
        return MasksLayout(root, keep_classes)
    return OfficialLayout(root, keep_classes, pool)
