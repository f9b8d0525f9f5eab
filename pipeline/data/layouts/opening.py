"""Open a dataset by the name of its layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.data.layouts.coco import CocoLayout
from pipeline.data.layouts.coco_lvis import OfficialLayout
from pipeline.data.layouts.layout import LAYOUTS, Layout
from pipeline.data.layouts.png_masks import MasksLayout
from pipeline.runtime.errors import DataError, UsageError
from pipeline.runtime.workers import WorkerPool


def open_layout(
    name: str,
    root: Path,
    keep_classes: Sequence[str | int] | None = None,
    pool: WorkerPool | None = None,
) -> Layout:
    """Read a dataset's annotations.

    Args:
        name: coco_lvis, coco or masks.
        root: the dataset's folder.
        keep_classes: names or class ids of the whole label space to keep; None for all.
        pool: processes that share the reading, see `pipeline.runtime.workers`.

    Raises:
        DataError: missing or damaged files, or files that contradict each other.
        UsageError: an unknown layout or class to keep.
    """
    if name not in LAYOUTS:
        raise UsageError("unknown layout", where="data.layout", found=repr(name), allowed=", ".join(LAYOUTS))
    if not root.is_dir():
        raise DataError(
            "no such dataset folder",
            where=root,
            allowed="a folder with images and annotations/, see docs/data.md",
            hint="name the right folder in data.root; data/tiny is made by dvc repro",
        )
    if name == "coco":
        return CocoLayout(root, keep_classes, pool)
    if name == "masks":
        return MasksLayout(root, keep_classes)
    return OfficialLayout(root, keep_classes, pool)
