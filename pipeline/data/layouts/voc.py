"""Open Pascal VOC 2012, and the Semantic Boundaries Dataset (SBD) that is usually added to its train split.

    VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg
    VOCdevkit/VOC2012/SegmentationClass/2007_000032.png         palette indices: 0 to 20; 255 void
    VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt
    benchmark_RELEASE/dataset/{img,cls}/2008_000002.{jpg,mat}   with `augmented`
    benchmark_RELEASE/dataset/{train,val}.txt

With `augmented`, train is the field's list of 10,582 images: VOC's train, and those of SBD's train and val
that are in neither VOC train nor VOC val. SBD's own splits overlap VOC's val, which must not be trained on.
VOC's images keep VOC's masks, with void; SBD's masks have none. Image ids are the digits of the names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from pipeline.data.labels.published import published_classes
from pipeline.data.layouts.layout import StoredMask
from pipeline.data.layouts.mat_files import sbd_values
from pipeline.data.layouts.paired import Pair, PairedLayout, count_remark, first_folder, read_names
from pipeline.data.layouts.voc_palette import voc_values
from pipeline.runtime.errors import DataError

PUBLISHED = {"train": 1_464, "val": 1_449}
AUGMENTED = 10_582
NAME = re.compile(r"(\d{4})_(\d{6})")
UNPACK = "unpack VOCtrainval_11-May-2012.tar whole: pipeline data fetch voc ROOT"
UNPACK_SBD = "unpack SBD's benchmark.tgz whole: pipeline data fetch sbd ROOT"


def open_voc(
    root: Path, keep_classes: Sequence[str | int] | None = None, *, augmented: bool = False
) -> PairedLayout:
    """List the images and masks of a root.

    Args:
        root: holds `VOCdevkit/` and, with `augmented`, `benchmark_RELEASE/`. `VOC2012/` may also lie in it.
        keep_classes: names or class ids of the 21 to keep; None for all.
        augmented: train on SBD's masks too.

    Raises:
        DataError: no such folders or lists, or another year.
        UsageError: an unknown class to keep.
    """
    needed = "ImageSets/Segmentation/val.txt"
    base = first_folder(root, ("VOCdevkit/VOC2012", "VOC2012", "."), needed, _not_here(root))
    label_space = published_classes("voc").subset(keep_classes)
    class_ids = label_space.lookup("voc")
    mask = partial(
        StoredMask,
        class_ids=class_ids,
        values=voc_values,
        listed="VOC 2012: 0 to 20, and 255 for void",
        hint="take the published PNGs; 38, 75 and 113 are gray levels of their palette, not its indices",
    )
    lists = {split: base / "ImageSets" / "Segmentation" / f"{split}.txt" for split in PUBLISHED}
    names = {split: read_names(path, hint=UNPACK) for split, path in lists.items()}
    pairs = {
        split: [
            Pair(
                _image_id(name, lists[split]),
                (base / "JPEGImages" / f"{name}.jpg").relative_to(root).as_posix(),
                mask(base / "SegmentationClass" / f"{name}.png"),
            )
            for name in names[split]
        ]
        for split in PUBLISHED
    }
    paths = list(lists.values())
    remarks = [
        remark
        for split in PUBLISHED
        for remark in count_remark(lists[split], len(names[split]), PUBLISHED[split])
    ]
    if augmented:
        added, more = _sbd(root, {*names["train"], *names["val"]}, mask)
        pairs["train"] += added
        paths += more
        remarks += count_remark(more[0], len(pairs["train"]), AUGMENTED)
    return PairedLayout(root, label_space, pairs, paths, remarks=remarks, whole=UNPACK)


def _sbd(root: Path, of_voc: set[str], mask: partial[StoredMask]) -> tuple[list[Pair], list[Path]]:
    """SBD's images that VOC has not, and the lists that name them."""
    missing = DataError("no SBD here, which data.voc.augmented adds", where=root, hint=UNPACK_SBD)
    base = first_folder(root, ("benchmark_RELEASE/dataset", "dataset"), "cls", missing)
    lists = [base / "train.txt", base / "val.txt"]
    names = {name: path for path in lists for name in read_names(path, hint=UNPACK_SBD)}
    pairs = [
        Pair(
            _image_id(name, names[name]),
            (base / "img" / f"{name}.jpg").relative_to(root).as_posix(),
            mask(base / "cls" / f"{name}.mat", values=sbd_values),
        )
        for name in sorted(names.keys() - of_voc)
    ]
    return pairs, lists


def _image_id(name: str, path: Path) -> int:
    if match := NAME.fullmatch(name):
        return int(match[1] + match[2])
    raise DataError(
        "a damaged split list",
        where=path,
        found=repr(name),
        allowed="a year and six digits on each line, such as 2007_000032",
        hint=UNPACK,
    )


def _not_here(root: Path) -> DataError:
    devkit = root / "VOCdevkit" if (root / "VOCdevkit").is_dir() else root
    years = sorted(path.name for path in devkit.glob("VOC20*"))
    if years and "VOC2012" not in years:
        return DataError("another year of VOC", where=devkit, found=", ".join(years), hint=UNPACK)
    for base in (devkit / "VOC2012", root):
        if (base / "SegmentationClass").is_dir() or (base / "JPEGImages").is_dir():
            return DataError(
                "missing split list", where=base / "ImageSets" / "Segmentation" / "val.txt", hint=UNPACK
            )
    return DataError("no VOC 2012 here", where=root, hint=UNPACK)
