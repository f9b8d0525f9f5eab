"""Open a dataset by the name of its layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.data.labels.official import LVIS_FILES, STUFF_FILES
from pipeline.data.layouts.ade20k import open_ade20k
from pipeline.data.layouts.cityscapes import open_cityscapes
from pipeline.data.layouts.coco import CocoLayout
from pipeline.data.layouts.coco_lvis import OfficialLayout
from pipeline.data.layouts.cocostuff10k import open_cocostuff10k
from pipeline.data.layouts.layout import DEFAULT_OPTIONS, LAYOUTS, Layout, LayoutOptions
from pipeline.data.layouts.parquet import open_parquet
from pipeline.data.layouts.png_masks import open_masks
from pipeline.data.layouts.voc import open_voc
from pipeline.runtime.errors import DataError, UsageError
from pipeline.runtime.workers import WorkerPool


def open_layout(
    name: str,
    root: Path,
    keep_classes: Sequence[str | int] | None = None,
    pool: WorkerPool | None = None,
    options: LayoutOptions = DEFAULT_OPTIONS,
) -> Layout:
    """Read a dataset's annotations.

    Args:
        name: one of `LAYOUTS`.
        root: the dataset's folder.
        keep_classes: names or class ids of the whole label space to keep; None for all.
        pool: processes that share the reading, see `pipeline.runtime.workers`.
        options: choices that concern a single layout.

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
    try:
        return _open(name, root, keep_classes, pool, options)
    except DataError as error:
        if advice := layout_advice(name, root):
            hint = f"{error.hint}; or {advice}" if error.hint else advice
            raise DataError(
                error.what, where=error.where, found=error.found, allowed=error.allowed, hint=hint
            ) from error
        raise


def layout_advice(name: str, root: Path) -> str | None:
    """Return advice where a folder does not look like the layout named, but like another one."""
    likely = likely_layouts(root)
    if not likely or name in likely:
        return None
    return f"name its layout, which looks like {' or '.join(likely)}: --layout {likely[0]}, or data.layout"


def likely_layouts(root: Path) -> list[str]:
    """Return the layouts that a folder looks like, by the names in it."""
    annotations = root / "annotations"
    signs = {
        "coco_lvis": any((annotations / name).exists() for name in (*LVIS_FILES.values(), *STUFF_FILES)),
        "coco": any(annotations.glob("*train*.json")),
        "masks": any((annotations / name).exists() for name in ("classes.csv", "labelmap.txt")),
        "cityscapes": (root / "gtFine").is_dir(),
        "voc": any((root / name).is_dir() for name in ("VOCdevkit", "VOC2012", "JPEGImages")),
        "ade20k": any((root / name).is_dir() for name in ("ADEChallengeData2016", "annotations/training")),
        "cocostuff10k": any((root / name / "imageLists").is_dir() for name in (".", "cocostuff-10k-v1.1")),
        "parquet": any(next(root.glob(pattern), None) for pattern in ("*.parquet", "*/*.parquet")),
    }
    return [name for name, is_likely in signs.items() if is_likely]


def _open(
    name: str,
    root: Path,
    keep_classes: Sequence[str | int] | None,
    pool: WorkerPool | None,
    options: LayoutOptions,
) -> Layout:
    if name == "coco":
        return CocoLayout(root, keep_classes, pool)
    if name == "masks":
        return open_masks(root, keep_classes)
    if name == "cityscapes":
        return open_cityscapes(root, keep_classes)
    if name == "voc":
        return open_voc(root, keep_classes, augmented=options.voc_augmented)
    if name == "ade20k":
        return open_ade20k(root, keep_classes)
    if name == "parquet":
        return open_parquet(root, keep_classes)
    if name == "cocostuff10k":
        return open_cocostuff10k(root, keep_classes, classes=options.cocostuff_classes)
    return OfficialLayout(root, keep_classes, pool)
