"""Read annotations in COCO's format: instances or stuff, any number of categories.

    annotations/*train*.json *val*.json    one file each: instances_train2017.json, stuff_val.json, train.json
    train*/ val*/                          the images, found by `file_name`: train2017/, val/

The categories of the train file are numbered in the order of their ids. Annotations are drawn in the order of
the file, crowds like any other. COCO-Stuff's category 183, "other", means unlabeled here as everywhere.

Most tools number the images of each file from 1. Where an id occurs in both files, all of val's are raised by
the smallest power of ten that is larger than any of them; else they stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.data.annotations.quarantine import Quarantine
from pipeline.data.annotations.reader import Source, read_files
from pipeline.data.annotations.validation import AnnotationFile, ImageEntry, category_disagreements
from pipeline.data.labels.label_space import ClassEntry, LabelSpace
from pipeline.data.layouts.annotated import AnnotatedSource, lacking_annotation
from pipeline.data.layouts.finding import ImageFolder
from pipeline.data.layouts.layout import Region
from pipeline.data.layouts.splits import Splits, divide
from pipeline.data.store.listing import visible
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
        files = dict(zip(("train", "val"), read_files(sources, pool), strict=True))
        for problem in category_disagreements(files["train"], files["val"]):
            raise problem
        self.raised_by = _raise_of_val(files["train"], files["val"])
        self._names = {split: one_folder(root, split) for split in files}
        self._folders = {source.folder: ImageFolder(root, source.folder) for source in sources}
        self.files = {split: self._found(file) for split, file in files.items()}
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
        class_ids = self.label_space.lookup(SOURCE)
        self._sources = {split: AnnotatedSource([file], class_ids) for split, file in self.files.items()}

    def _found(self, file: AnnotationFile) -> AnnotationFile:
        """Return a file with the paths that its images have on disk; what is not found keeps its name."""
        images = {}
        for image_id, entry in file.images.items():
            folder, _, name = (entry.file or "").partition("/")
            path = self._folders[folder].find(name)
            same = path is None or path == name
            images[image_id] = entry if same else replace(entry, file=f"{folder}/{path}")
        return replace(file, images=images)

    def splits(self, holdout_fraction: float, holdout_seed: int) -> Splits:
        """Divide the images; one without any annotation of a kept class is left out."""
        listed: dict[str, list[ImageEntry]] = {}
        reasons: dict[int, str] = {}
        for split, file in self.files.items():
            source = self._sources[split]
            shown = source.showing_kept()
            raised = self.raised_by if split == "val" else 0
            listed[split] = []
            for entry in file.images.values():
                listed[split].append(replace(entry, image_id=entry.image_id + raised))
                if reason := lacking_annotation(entry, [source], shown):
                    reasons[entry.image_id + raised] = reason
        return divide(listed, lambda entry: reasons.get(entry.image_id), holdout_fraction, holdout_seed)

    def content(self, image: ImageEntry) -> list[Region]:
        """Return the annotations of an image in the order of the file."""
        folder = (image.file or "").partition("/")[0]
        split = next(split for split, name in self._names.items() if name == folder)
        raised = self.raised_by if split == "val" else 0
        return list(self._sources[split].regions(replace(image, image_id=image.image_id - raised)))

    def looked_for(self, image: ImageEntry) -> None:
        """Return None: what is not annotated is not there."""

    def missing_image(self, image: ImageEntry) -> DataError:
        """Return the error of a listed image that does not exist, with its likely cause."""
        folder, _, name = (image.file or "").partition("/")
        return DataError(
            "missing image",
            where=self.root / (image.file or ""),
            found=self._folders[folder].explain(name) or "no file of a similar name",
            allowed=f"file_name as the image is called in {folder}/",
            hint="correct file_name, put the image there, or remove it from the annotations",
        )

    def choices(self) -> dict[str, object]:
        """Return what was decided here, for the manifest."""
        return {"val_ids_raised_by": self.raised_by} if self.raised_by else {}


def _raise_of_val(train: AnnotationFile, val: AnnotationFile) -> int:
    """Return what is added to val's image ids so that they differ from train's; 0 where they do already."""
    if train.images.keys().isdisjoint(val.images):
        return 0
    lowest, highest = min(*train.images, *val.images), max(*train.images, *val.images)
    raised = 10 ** len(str(highest))
    if lowest < 0 or highest + raised >= 2**63:
        raise DataError(
            "image ids that occur in both files and cannot be told apart",
            where=f"{train.name} and {val.name}",
            found=f"ids from {lowest} to {highest}",
            allowed="ids that differ, or small ones that are not negative",
            hint="number the images of val otherwise than those of train",
        )
    return raised


def _one_file(folder: Path, split: str) -> Path:
    listed = visible(folder.glob("*.json"), folder) if folder.is_dir() else []
    found = [path for path in listed if split in path.name]
    if len(found) == 1:
        return found[0]
    raise DataError(
        f"no annotation file for {split}" if not found else f"several annotation files for {split}",
        where=folder,
        found=", ".join(path.name for path in found) or None,
        allowed=f"one .json with {split!r} in its name, such as instances_{split}2017.json",
        hint="put it there, or move the others away",
    )


def one_folder(root: Path, split: str, of: str = "images") -> str:
    """Return the name of the folder with the images of a split, or with what else is in folders of a split.

    Raises:
        DataError: none, or several.
    """
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name.startswith(split))
    if len(found) == 1:
        return found[0]
    raise DataError(
        f"no folder with the {split} {of}" if not found else f"several folders with {split} {of}",
        where=root,
        found=", ".join(found) or None,
        allowed=f"one folder whose name begins with {split!r}, such as {split}2017",
        hint=f"put the {of} there, or move the others away",
    )
