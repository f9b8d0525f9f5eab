"""Read images beside ready masks: 8- or 16-bit gray or palette PNGs, and a list of classes.

    train*/ val*/                          the images, in subfolders as you like
    annotations/train*/ annotations/val*/  a mask for each, under the same name but .png
    annotations/classes.csv                value,name: what a pixel value means; no name: unlabeled

Class ids follow the order of the list. A pixel value that is not listed is an error: it may be a mask of
another dataset. Images have no ids here: they are numbered by name, train first.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.annotations.quarantine import Quarantine
from pipeline.data.annotations.validation import ImageEntry
from pipeline.data.labels.label_space import ClassEntry, LabelSpace
from pipeline.data.layouts.coco import one_folder
from pipeline.data.layouts.layout import LARGEST, StoredMask
from pipeline.data.layouts.splits import Splits, divide
from pipeline.data.store.images import open_image
from pipeline.runtime.errors import DataError

SOURCE = "masks"
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


class MasksLayout:
    """A root in this layout, listed.

    Args:
        root: the dataset's folder.
        keep_classes: names or class ids of the whole label space to keep; None for all.

    Raises:
        DataError: a missing folder or list, a list that is damaged.
        UsageError: an unknown class to keep.
    """

    counts_frequencies = True

    def __init__(self, root: Path, keep_classes: Sequence[str | int] | None = None) -> None:
        self.root, self.quarantine = root, Quarantine()
        self.paths = [root / "annotations" / "classes.csv"]
        self.label_space = _read_classes(self.paths[0]).subset(keep_classes)
        self._class_ids = self.label_space.lookup(SOURCE)
        self._images: dict[str, list[ImageEntry]] = {}
        self._masks: dict[int, Path] = {}
        for split in ("train", "val"):
            self._images[split] = self._list(one_folder(root, split), one_folder(root / "annotations", split))

    def _list(self, folder: str, masks: str) -> list[ImageEntry]:
        """List the images of a folder by name; their sizes are read from their headers."""
        entries, seen = [], set[Path]()
        for path in sorted(p for p in (self.root / folder).rglob("*") if p.suffix.lower() in ENDINGS):
            name = path.relative_to(self.root / folder)
            mask = self.root / "annotations" / masks / name.with_suffix(".png")
            if mask in seen:
                raise DataError("two images share a mask", where=mask, found=f"{name} is the second")
            seen.add(mask)
            with open_image(path, hint="take the file from its source again, or remove it") as opened:
                width, height = opened.size
            image_id = len(self._masks) + 1
            self._masks[image_id] = mask
            entries.append(ImageEntry(image_id, height, width, f"{folder}/{name.as_posix()}"))
        if not entries:
            raise DataError("a folder without images", where=self.root / folder, allowed=", ".join(ENDINGS))
        return entries

    def splits(self, holdout_fraction: float, holdout_seed: int) -> Splits:
        """Divide the images; those without a labeled pixel are known only when their masks are read."""
        return divide(self._images, lambda entry: None, holdout_fraction, holdout_seed)

    def content(self, image: ImageEntry) -> StoredMask:
        """Return the mask of an image."""
        return StoredMask(self._masks[image.image_id], self._class_ids)


def _read_classes(path: Path) -> LabelSpace:
    """Read the list of classes."""

    def problem(what: str, found: object) -> DataError:
        return DataError(
            what, where=path, found=found, allowed="a header value,name and one line a value, 0 to 65,535"
        )

    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise problem("no readable list of classes", error) from error
    entries: list[ClassEntry] = []
    unlabeled: list[int] = []
    for line, row in enumerate(rows, start=2):
        value, name = (row.get("value") or "").strip(), (row.get("name") or "").strip()
        if not value.isascii() or not value.isdigit() or int(value) > LARGEST:
            raise problem("a damaged list of classes", f"line {line}: {row}")
        if name:
            entries.append(ClassEntry(len(entries) + 1, name, SOURCE, "f", {SOURCE: (int(value),)}))
        else:
            unlabeled.append(int(value))
    return LabelSpace(tuple(entries), {SOURCE: tuple(unlabeled)})
