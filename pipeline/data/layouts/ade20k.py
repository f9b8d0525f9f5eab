"""Open SceneParse150, the 150 classes of ADE20K, as ADEChallengeData2016.zip unpacks.

    ADEChallengeData2016/images/{training,validation}/ADE_{train,val}_00000001.jpg
    ADEChallengeData2016/annotations/{training,validation}/ADE_{train,val}_00000001.png
    ADEChallengeData2016/sceneCategories.txt                    where present: names all images

The masks are 8-bit: 0 is "other objects" and unlabeled, 1 to 150 are the classes. Image ids are the numbers
in the names; val's start at 100,001.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipeline.data.labels.published import published_classes
from pipeline.data.layouts.layout import StoredMask
from pipeline.data.layouts.paired import (
    Pair,
    PairedLayout,
    count_remark,
    first_folder,
    matched,
    read_names,
)
from pipeline.data.store.listing import visible
from pipeline.runtime.errors import DataError

FOLDERS = {"train": "training", "val": "validation"}
PUBLISHED = {"train": 20_210, "val": 2_000}
FIRST_VAL_ID = 100_000
NAME = re.compile(r"ADE_(?:train|val)_(\d{8})")
UNPACK = "unpack ADEChallengeData2016.zip whole: pipeline data fetch ade20k ROOT"


def open_ade20k(root: Path, keep_classes: Sequence[str | int] | None = None) -> PairedLayout:
    """List the images and masks of a root.

    Args:
        root: holds `ADEChallengeData2016/`, or is that folder.
        keep_classes: names or class ids of the 150 to keep; None for all.

    Raises:
        DataError: no such folders, or another release.
        UsageError: an unknown class to keep.
    """
    base = first_folder(root, ("ADEChallengeData2016", "."), "annotations", _other_release(root))
    label_space = published_classes("ade20k").subset(keep_classes)
    mask = partial(
        StoredMask,
        class_ids=label_space.lookup("ade20k"),
        listed="SceneParse150: 0 unlabeled, 1 to 150",
        hint="take the published masks; a conversion that shifts them by one leaves 255 for 0",
    )
    problems: list[DataError] = []
    remarks, pairs, listed = [], {}, _listed(base)
    for split, folder in FOLDERS.items():
        images = _by_name(base / "images" / folder, "*.jpg")
        masks = _by_name(base / "annotations" / folder, "*.png")
        names = matched(images, masks, problems, hint=UNPACK)
        for name in listed.get(split, ()):
            if name not in images and name not in masks:
                path = base / "images" / folder / f"{name}.jpg"
                problems.append(
                    DataError("missing image", where=path, found="sceneCategories.txt lists it", hint=UNPACK)
                )
        shift = FIRST_VAL_ID if split == "val" else 0
        pairs[split] = [
            Pair(shift + _number(images[name]), images[name].relative_to(root).as_posix(), mask(masks[name]))
            for name in names
        ]
        remarks += count_remark(base / "images" / folder, len(names), PUBLISHED[split])
    return PairedLayout(root, label_space, pairs, problems=problems, remarks=remarks, whole=UNPACK)


def _by_name(folder: Path, pattern: str) -> dict[str, Path]:
    return {path.stem: path for path in visible(folder.glob(pattern), folder)}


def _number(image: Path) -> int:
    if match := NAME.fullmatch(image.stem):
        return int(match[1])
    raise DataError(
        "a file name that is not of this dataset",
        where=image,
        allowed="ADE_train_ or ADE_val_ and eight digits",
        hint="move it away, or use the layout masks",
    )


def _listed(base: Path) -> dict[str, list[str]]:
    """Return the names in sceneCategories.txt by split; none where the file is absent."""
    path = base / "sceneCategories.txt"
    names = read_names(path, hint=UNPACK) if path.exists() else []
    return {split: [name for name in names if name.startswith(f"ADE_{split}_")] for split in FOLDERS}


def _other_release(root: Path) -> DataError:
    """Return the error for a root without annotations, which names the release that lies there."""
    instances = root if (root / "annotations_instance").is_dir() else root / "ADEChallengeData2016"
    if (instances / "annotations_instance").is_dir():
        what = "the instance challenge of 2017 instead of SceneParse150"
    elif any(root.glob("ADE20K_20*")) or any(root.rglob("ADE_*_seg.png")):
        what = "full ADE20K, whose masks are colors, instead of SceneParse150"
    else:
        what = "no SceneParse150 here"
    return DataError(what, where=root, hint=UNPACK)
