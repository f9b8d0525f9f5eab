"""Read annotations in COCO's format: instances or stuff, any number of categories.

    annotations/*train*.json *val*.json    one file each: instances_train2017.json, stuff_val.json, train.json
    train*/ val*/                          the images, found by `file_name`: train2017/, val/

The categories of the train file are numbered in the order of their ids. Annotations are drawn in the order of
the file, crowds like any other. COCO-Stuff's category 183, "other", means unlabeled here as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.data.annotations.quarantine import Quarantine
from pipeline.data.annotations.reader import Source, read_files
from pipeline.data.annotations.validation import ImageEntry, require_agreement
from pipeline.data.labels.label_space import ClassEntry, LabelSpace
from pipeline.data.layouts.annotated import AnnotatedSource, lacking_annotation
from pipeline.data.layouts.layout import Region
from pipeline.data.layouts.splits import Splits, divide
from pipeline.runtime.errors import DataError
from pipeline.runtime.workers import WorkerPool

SOURCE = "coco"
OTHER = (183, "other")


class CocoLayout:
    """A root in this layout, read and checked.

    Args:
        root: the dataset's folder.
        keep_classes: names or class ids of the whole label space to keep; None for all.
        pool: processes that share the reading, see `pipeline.runtime.workers`.

    Raises:
        DataError: missing or damaged files, or files that contradict each other.
        UsageError: an unknown class to keep, or more classes than masks can hold.
    """

    def __init__(
        self,
        root: Path,
        keep_classes: Sequence[str | int] | None = None,
        pool: WorkerPool | None = None,
    ) -> None:
        self.root, self.quarantine = root, Quarantine()
        self.paths = [_one_file(root / "annotations", split) for split in ("train", "val")]
        sources = [
            Source(path, "coco", one_folder(root, split))
            for split, path in zip(("train", "val"), self.paths, strict=True)
        ]
        self.files = dict(zip(("train", "val"), read_files(sources, pool), strict=True))
        require_agreement(self.files["train"], self.files["val"])
        categories = self.files["train"].categories
        self.counts_frequencies = not all(
            category.get("frequency") in ("r", "c", "f") for category in categories
        )
        unlabeled = tuple(c["id"] for c in categories if (c["id"], c["name"]) == OTHER)
        kept = [category for category in categories if category["id"] not in unlabeled]
        entries = [
            ClassEntry(
                class_id,
                category["name"],
                SOURCE,
                "f" if self.counts_frequencies else category["frequency"],
                {SOURCE: (category["id"],)},
            )
            for class_id, category in enumerate(kept, start=1)
        ]
        whole = LabelSpace(tuple(entries), {SOURCE: unlabeled})
        self.label_space = whole.subset(keep_classes)
        self._source = AnnotatedSource(list(self.files.values()), self.label_space.lookup(SOURCE))

    def splits(self, holdout_fraction: float, holdout_seed: int) -> Splits:
        """Divide the images; one without any annotation of a kept class is left out."""
        shown = self._source.showing_kept()

        def unusable(entry: ImageEntry) -> str | None:
            return lacking_annotation(entry, [self._source], shown)

        listed = {split: file.images.values() for split, file in self.files.items()}
        return divide(listed, unusable, holdout_fraction, holdout_seed)

    def content(self, image: ImageEntry) -> list[Region]:
        """Return the annotations of an image in the order of the file."""
        return list(self._source.regions(image))


def _one_file(folder: Path, split: str) -> Path:
    found = sorted(path for path in folder.glob("*.json") if split in path.name) if folder.is_dir() else []
    if len(found) == 1:
        return found[0]
    raise DataError(
        f"no annotation file for {split}" if not found else f"several annotation files for {split}",
        where=folder,
        found=", ".join(path.name for path in found) or None,
        allowed=f"one .json with {split!r} in its name, such as instances_{split}2017.json",
        hint="put it there, or move the others away",
    )


def one_folder(root: Path, split: str) -> str:
    """Return the name of the folder with the images of a split.

    Raises:
        DataError: none, or several.
    """
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name.startswith(split))
    if len(found) == 1:
        return found[0]
    raise DataError(
        f"no folder with the {split} images" if not found else f"several folders with {split} images",
        where=root,
        found=", ".join(found) or None,
        allowed=f"one folder whose name begins with {split!r}, such as {split}2017",
        hint="put the images there, or move the others away",
    )
