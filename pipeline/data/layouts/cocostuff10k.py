"""Open COCO-Stuff 10k v1.1 as cocostuff-10k-v1.1.zip unpacks.

    images/COCO_train2014_000000000077.jpg
    annotations/COCO_train2014_000000000077.mat             S: 0 unlabeled, 1 to 91 things, 92 to 182 stuff
    imageLists/{train,test}.txt                             9,000 and 1,000 names; test is our val

Eleven of the 91 thing ids have no pixel in the release. By default they are no classes: 171 remain, in the
order of the ids. The paper's code has an output for each of the 182. Image ids are COCO's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipeline.data.labels.published import published_classes
from pipeline.data.layouts.layout import StoredMask
from pipeline.data.layouts.mat_files import cocostuff_values
from pipeline.data.layouts.paired import Pair, PairedLayout, count_remark, first_folder, read_names
from pipeline.runtime.errors import DataError, UsageError

LISTS = {"train": "train.txt", "val": "test.txt"}
PUBLISHED = {"train": 9_000, "val": 1_000}
NUMBERS_OF_CLASSES = (171, 182)
NAME = re.compile(r"COCO_train2014_(\d{12})")
UNPACK = "unpack cocostuff-10k-v1.1.zip whole: pipeline data fetch cocostuff10k ROOT"


def open_cocostuff10k(
    root: Path, keep_classes: Sequence[str | int] | None = None, *, classes: int = 171
) -> PairedLayout:
    """List the images and masks of a root.

    Args:
        root: holds `images/`, `annotations/` and `imageLists/`, or a folder `cocostuff-10k-v1.1` that does.
        keep_classes: names or class ids to keep; None for all.
        classes: 171 that occur, or 182.

    Raises:
        DataError: no such folders or lists, or another release.
        UsageError: another number of classes, an unknown class to keep.
    """
    if classes not in NUMBERS_OF_CLASSES:
        raise UsageError(
            "no such number of classes", where="data.cocostuff.classes", found=classes, allowed="171 or 182"
        )
    missing = DataError("no COCO-Stuff 10k here", where=root, hint=UNPACK)
    base = first_folder(root, (".", "cocostuff-10k-v1.1"), "annotations", missing)
    _check_release(base / "annotations")
    label_space = published_classes("cocostuff10k", populated_only=classes == 171).subset(keep_classes)
    mask = partial(
        StoredMask,
        class_ids=label_space.lookup("cocostuff10k"),
        values=cocostuff_values,
        listed=f"COCO-Stuff 10k v1.1 with {classes} classes",
        hint="take the published masks; data.cocostuff.classes: 182 also knows the ids without pixels",
    )
    problems: list[DataError] = []
    pairs: dict[str, list[Pair]] = {}
    remarks, listed = [], set[str]()
    for split, name in LISTS.items():
        path = base / "imageLists" / name
        names = read_names(path, hint=UNPACK)
        listed.update(names)
        pairs[split] = []
        for name in names:
            image, annotation = base / "images" / f"{name}.jpg", base / "annotations" / f"{name}.mat"
            pairs[split].append(
                Pair(_image_id(name, path), image.relative_to(root).as_posix(), mask(annotation))
            )
        remarks += count_remark(path, len(names), PUBLISHED[split])
    for annotation in sorted((base / "annotations").glob("*.mat")):
        if annotation.stem not in listed:
            remarks.append((annotation, "a mask that no split lists", annotation.stem))
    paths = [base / "imageLists" / name for name in LISTS.values()]
    return PairedLayout(root, label_space, pairs, paths, problems, remarks, whole=UNPACK)


def _image_id(name: str, path: Path) -> int:
    if match := NAME.fullmatch(name):
        return int(match[1])
    raise DataError(
        "a damaged split list",
        where=path,
        found=repr(name),
        allowed="COCO_train2014_ and twelve digits on each line",
        hint=UNPACK,
    )


def _check_release(annotations: Path) -> None:
    if any(annotations.glob("*.png")) and not any(annotations.glob("*.mat")):
        raise DataError(
            "a mask of another release",
            where=annotations,
            found="PNG files, as in the COCO-Stuff of 164,000 images",
            allowed=".mat files of COCO-Stuff 10k v1.1",
            hint="fetch v1.1, or use the layout masks with the list of that release",
        )
