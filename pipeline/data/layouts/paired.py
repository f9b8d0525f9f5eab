"""Hold a dataset in which every image has one mask file.

A dataset module lists its files and returns a `PairedLayout`; bootstrapping and checking do the rest:

    def open_mine(root, keep_classes=None):
        label_space = published_classes("mine").subset(keep_classes)
        mask = partial(StoredMask, class_ids=label_space.lookup("mine"), listed="mine's table")
        pairs = {"train": [Pair(1, "images/a.jpg", mask(root / "masks/a.png"))], "val": [...]}
        return PairedLayout(root, label_space, pairs)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipeline.data.annotations.quarantine import Quarantine
from pipeline.data.annotations.validation import ImageEntry
from pipeline.data.labels.label_space import LabelSpace
from pipeline.data.layouts.layout import StoredMask, missing_file
from pipeline.data.layouts.splits import Splits, divide
from pipeline.data.store.images import open_image
from pipeline.data.store.orientation import read_frame
from pipeline.runtime.errors import DataError


class Pair(NamedTuple):
    """One image and its mask.

    Args:
        image_id: unique among all splits.
        image: path relative to the dataset's root.
        mask: how to read its mask.
    """

    image_id: int
    image: str
    mask: StoredMask


@dataclass
class PairedLayout:
    """A dataset in which every image has one mask file.

    Args:
        root: the dataset's folder.
        label_space: its classes, already cut to those that are kept.
        pairs: the images of train and val.
        paths: the files that decide about the result, such as split lists, for the manifest.
        problems: what is wrong with the files as they are listed: an image without a mask, a half-unpacked
            archive. The first stops bootstrapping; checking reports all.
        remarks: what is odd and harmless, as (file, kind, detail).
        counts_frequencies: classes become rare, common or frequent by the training images that show them.
        whole: how to get all files of the dataset, for errors.
    """

    root: Path
    label_space: LabelSpace
    pairs: Mapping[str, Sequence[Pair]]
    paths: list[Path] = field(default_factory=list)
    problems: list[DataError] = field(default_factory=list)
    remarks: list[tuple[Path, str, str]] = field(default_factory=list)
    counts_frequencies: bool = True
    whole: str = "put the missing file there, or take it off the list"
    quarantine: Quarantine = field(default_factory=Quarantine)

    def __post_init__(self) -> None:
        self._masks: dict[int, StoredMask] = {}
        owners: dict[str, str] = {}
        for split, pairs in self.pairs.items():
            for pair in pairs:
                if pair.image in owners:
                    twice = owners[pair.image] == split
                    self.problems.append(
                        DataError(
                            "an image listed twice" if twice else "an image in two splits",
                            where=self.root / pair.image,
                            found=f"{owners[pair.image]} and {split}",
                            hint="take the published split lists again: training on val falsifies its result",
                        )
                    )
                owners[pair.image] = split
                self._masks[pair.image_id] = pair.mask

    def splits(self, holdout_fraction: float, holdout_seed: int) -> Splits:
        """Divide the images; their sizes are read from their headers.

        Raises:
            DataError: the first of `problems`, an unreadable image, a split without images.
        """
        if self.problems:
            raise self.problems[0]
        entries = {}
        for split, pairs in self.pairs.items():
            if not pairs:
                raise self.empty_split(split)
            entries[split] = [
                ImageEntry(pair.image_id, *annotated_size(self.root / pair.image, pair.mask), pair.image)
                for pair in pairs
            ]
        return divide(entries, lambda entry: None, holdout_fraction, holdout_seed)

    def empty_split(self, split: str) -> DataError:
        """Return the error for a split without images."""
        return DataError(f"no images in {split}", where=self.root, hint=self.whole)

    def looked_for(self, image: ImageEntry) -> None:
        """Return None: what is not annotated is not there."""

    def missing_image(self, image: ImageEntry) -> DataError:
        """Return the error of a listed image that does not exist."""
        return missing_file(self.root, image, self.whole)

    def choices(self) -> dict[str, object]:
        """Return what was decided when the dataset was read, for the manifest."""
        return {}

    def content(self, image: ImageEntry) -> StoredMask:
        """Return the mask of an image."""
        return self._masks[image.image_id]


def matched(
    images: Mapping[str, Path], masks: Mapping[str, Path], problems: list[DataError], *, hint: str
) -> list[str]:
    """Return the keys that have both an image and a mask, sorted; the others become problems.

    Args:
        images: by a key that an image shares with its mask.
        masks: by the same key.
        problems: gains one error for each image without a mask, and for each mask without an image.
        hint: which archive holds what is missing.
    """
    for key in sorted(images.keys() - masks.keys()):
        problems.append(DataError("an image without a mask", where=images[key], hint=hint))
    for key in sorted(masks.keys() - images.keys()):
        problems.append(DataError("a mask without an image", where=masks[key], hint=hint))
    return sorted(images.keys() & masks.keys())


def read_names(path: Path, *, hint: str) -> list[str]:
    """Read a split list: the first word of each line that is not empty.

    Raises:
        DataError: no such file, or nothing in it.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = "unreadable split list" if path.is_file() else "missing split list"
        raise DataError(what, where=path, found=error, hint=hint) from error
    return [line.split()[0] for line in lines if line.strip()]


def first_folder(root: Path, candidates: Iterable[str], needed: str, missing: DataError) -> Path:
    """Return the first of some folders under `root` that holds `needed`; raise `missing` where none does."""
    for candidate in candidates:
        if (root / candidate / needed).exists():
            return root / candidate
    raise missing


def count_remark(where: Path, number: int, published: int) -> list[tuple[Path, str, str]]:
    """Return a remark where there are other than the published number of images, or nothing."""
    if number == published:
        return []
    return [(where, "not the whole published split", f"{number:,} of {published:,} images")]


def annotated_size(path: Path, mask: StoredMask) -> tuple[int, int]:
    """Return the (height, width) in which an image is read: as stored, unless its mask has the size as shown.

    Raises:
        DataError: missing or unreadable, or its mask may follow the EXIF orientation or not.
    """
    with open_image(path) as opened:
        frame = read_frame(opened)
    if frame.orientation == 1:
        return frame.stored
    if frame.is_ambiguous:
        frame.require(frame.stored, str(path), of="mask")
    return frame.shown if mask.numbers().shape == frame.shown else frame.stored
