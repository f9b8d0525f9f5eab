"""Open Cityscapes as gtFine_trainvaltest.zip and leftImg8bit_trainvaltest.zip unpack.

    leftImg8bit/{train,val}/CITY/CITY_000000_000019_leftImg8bit.png
    gtFine/{train,val}/CITY/CITY_000000_000019_gtFine_labelIds.png     or, where absent, ..._labelTrainIds.png

labelIds are looked up in the published table of nineteen classes; the other ids are unlabeled. The official
tools never draw a license plate (-1): its pixels show the car below it. So a 255 in labelIds is refused; only
in labelTrainIds it means unlabeled. Images are numbered by city and name, train first. The test split has no
labels and is not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.data.labels.label_space import LabelSpace
from pipeline.data.labels.published import published_classes
from pipeline.data.layouts.layout import StoredMask
from pipeline.data.layouts.paired import Pair, PairedLayout, count_remark, first_folder, matched
from pipeline.data.store.listing import visible
from pipeline.runtime.errors import DataError

PUBLISHED = {"train": 2_975, "val": 500}
SITE = "https://www.cityscapes-dataset.com/downloads/ (free registration)"
UNPACK = f"unpack gtFine_trainvaltest.zip and leftImg8bit_trainvaltest.zip whole, from {SITE}"
IMAGE, IDS, TRAIN_IDS = "_leftImg8bit.png", "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"
COLORS = "_gtFine_color.png"


def open_cityscapes(root: Path, keep_classes: Sequence[str | int] | None = None) -> PairedLayout:
    """List the images and masks of a root.

    Args:
        root: holds `gtFine/` and `leftImg8bit/`.
        keep_classes: names or class ids of the nineteen to keep; None for all.

    Raises:
        DataError: no such folders, or labels of another kind.
        UsageError: an unknown class to keep.
    """
    for folder in ("gtFine", "leftImg8bit"):
        missing = DataError(f"no {folder} of Cityscapes here", where=root, hint=UNPACK)
        first_folder(root, (".",), folder, missing)
    whole = published_classes("cityscapes")
    label_space = whole.subset(keep_classes)
    tables = _tables(whole, label_space)
    problems: list[DataError] = []
    pairs: dict[str, list[Pair]] = {}
    remarks, number = [], 0
    for split in PUBLISHED:
        images = _walk(root / "leftImg8bit" / split, IMAGE)
        found = {kind: _walk(root / "gtFine" / split, kind) for kind in (TRAIN_IDS, IDS)}
        masks = found[TRAIN_IDS] | found[IDS]
        for key, path in sorted(_walk(root / "gtFine" / split, COLORS).items()):
            if key not in masks:
                problems.append(_only_colors(path))
                images.pop(key, None)
        pairs[split] = []
        for key in matched(images, masks, problems, hint=UNPACK):
            number += 1
            kind = IDS if key in found[IDS] else TRAIN_IDS
            class_ids, listed, hint = tables[kind]
            mask = StoredMask(masks[key], class_ids, listed=listed, hint=hint)
            pairs[split].append(Pair(number, images[key].relative_to(root).as_posix(), mask))
        remarks += count_remark(root / "leftImg8bit" / split, len(pairs[split]), PUBLISHED[split])
    return PairedLayout(root, label_space, pairs, problems=problems, remarks=remarks, whole=UNPACK)


def _walk(folder: Path, ending: str) -> dict[str, Path]:
    """Return the files of all cities that end so, by CITY/CITY_SEQUENCE_FRAME."""
    return {
        f"{path.parent.name}/{path.name.removesuffix(ending)}": path
        for path in visible(folder.glob(f"*/*{ending}"), folder)
    }


def _tables(whole: LabelSpace, kept: LabelSpace) -> dict[str, tuple[dict[int, int], str, str]]:
    """For each kind of mask: value -> class id, the values' name for errors, and a hint."""
    class_ids = kept.lookup("cityscapes")
    ordered = [entry.category_ids["cityscapes"][0] for entry in whole.classes]
    of_train_ids = {train_id: class_ids[label_id] for train_id, label_id in enumerate(ordered)}
    return {
        IDS: (
            class_ids,
            "labelIds (-1 to 33)",
            "take the published labelIds; 255 is in labelTrainIds, or a plate's -1 written in 8 bits",
        ),
        TRAIN_IDS: (
            of_train_ids | {255: 0},
            "labelTrainIds (0 to 18, and 255 for unlabeled)",
            "make them again with csCreateTrainIdLabelImgs, or use labelIds",
        ),
    }


def _only_colors(path: Path) -> DataError:
    return DataError(
        "a mask in colors",
        where=path,
        found="neither labelIds nor labelTrainIds beside it",
        allowed=f"a file that ends in {IDS}",
        hint=UNPACK,
    )
