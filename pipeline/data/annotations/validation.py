"""Check the rows of annotation files in LVIS's or COCO's form, and files against each other.

Keys and types are checked where rows are decoded (`pipeline.data.annotations.schema`); here are the rules
about values: sizes, ids that occur once and refer to something. Outlines are checked when they are rasterized
(`pipeline.data.bootstrap.rle`).
"""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from pipeline.data.annotations.index import Columns, IndexedRows
from pipeline.data.annotations.json_text import JsonText, Text, parse
from pipeline.data.annotations.schema import (
    RESTORE,
    CategoryRow,
    CocoImageRow,
    ImageRow,
    LvisCategoryRow,
    LvisImageRow,
    decode_row,
)
from pipeline.data.labels.label_space import UNLABELLED_STUFF
from pipeline.runtime.errors import DataError

MAX_SIDE = 65_500
"""Pixels; JPEG's limit. Beyond it pycocotools' 32-bit pixel numbers could overflow."""

LONGEST_NAME = 255
"""Bytes of a file's name, as file systems have it."""

Rows = Mapping[str, Set[int]]
"""Places of rows by the list they are in: images, annotations, categories."""
NOTHING: Rows = {}

Form = Literal["lvis", "stuff", "coco"]


@dataclass(frozen=True, slots=True)
class ImageEntry:
    """One listed image.

    Args:
        image_id: COCO's.
        height: in pixels.
        width: in pixels.
        file: path relative to the dataset's root, from `coco_url`; None where the list has no such key.
    """

    image_id: int
    height: int
    width: int
    file: str | None


class Problem(NamedTuple):
    """What is wrong with one row.

    Args:
        key: the list it is in: categories, images or annotations.
        place: in the list.
        error: what is wrong.
    """

    key: str
    place: int
    error: DataError


@dataclass(frozen=True)
class AnnotationFile:
    """The sound rows of a file.

    Args:
        name: the file's name, for messages.
        categories: as in the file, sorted by id.
        images: image id -> entry, in the order of the file.
        by_image: image id -> annotations in the order of the file; no key where there are none.
        problems: what is wrong with the other rows: of categories, images, annotations, each by place.
        num_annotations: rows of annotations, sound or not.
        absent: image id -> categories that were looked for and not found.
        not_exhaustive: image id -> categories of which not every object is annotated.
    """

    name: str
    categories: list[dict[str, Any]]
    images: Mapping[int, ImageEntry]
    by_image: IndexedRows
    problems: Sequence[Problem] = ()
    num_annotations: int = 0
    absent: Mapping[int, Sequence[int]] = field(default_factory=dict)
    not_exhaustive: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def showing(self, category_ids: Set[int]) -> set[int]:
        """Return the ids of the images with an annotation of one of the categories."""
        return self.by_image.showing(category_ids)


class RowChecks:
    """Check the rows of one file, list by list; sound rows are kept and problems are collected.

    Args:
        path: the file, for messages.
        form: in a file of "lvis" categories have a frequency and images a `coco_url`; in one of "stuff" the
            categories 183 and 255 stand for unlabeled; in one of "coco" images have a `file_name`.
        folder: of the images, with "coco".
    """

    def __init__(self, path: Path, form: Form, folder: str = "") -> None:
        self.path, self.form, self.folder = path, form, folder
        self.by_category: dict[int, dict[str, Any]] = {}
        self.images: dict[int, ImageEntry] = {}
        self.known: set[int] = set(UNLABELLED_STUFF) if form == "stuff" else set()
        self.problems: list[Problem] = []
        self.num_annotations = 0
        self.absent: dict[int, Sequence[int]] = {}
        self.not_exhaustive: dict[int, Sequence[int]] = {}

    def add_category(self, text: JsonText, part: Text, place: int) -> None:
        """Check a category, a part of the file's text at a place in its list."""
        kind = LvisCategoryRow if self.form == "lvis" else CategoryRow
        row = decode_row(text, part, kind, f"{self.path}: categories", place)
        fault = row if isinstance(row, DataError) else self._category_fault(place, row)
        if fault is not None:
            self.problems.append(Problem("categories", place, fault))
        elif not isinstance(row, DataError):
            self.by_category[row.id] = parse(text.original(part))
            self.known.add(row.id)

    def _category_fault(self, place: int, row: CategoryRow) -> DataError | None:
        where = f"{self.path}: categories[{place}]"
        if isinstance(row, LvisCategoryRow) and row.frequency not in ("r", "c", "f"):
            found, allowed = repr(row.frequency), "r, c, f"
            return DataError("unknown frequency", where=where, found=found, allowed=allowed, hint=RESTORE)
        if row.id in self.by_category:
            return DataError("a category id is listed twice", where=where, found=row.id, hint=RESTORE)
        return None

    def add_image(self, text: JsonText, part: Text, place: int) -> None:
        """Check an image, a part of the file's text at a place in its list."""
        kinds: dict[str, type[ImageRow]] = {"lvis": LvisImageRow, "coco": CocoImageRow}
        row = decode_row(text, part, kinds.get(self.form, ImageRow), f"{self.path}: images", place)
        entry = row if isinstance(row, DataError) else self._image_entry(place, row)
        if isinstance(entry, DataError):
            self.problems.append(Problem("images", place, entry))
        else:
            self.images[entry.image_id] = entry
            if isinstance(row, LvisImageRow):
                self.absent[row.id] = self._known(row.neg_category_ids)
                self.not_exhaustive[row.id] = self._known(row.not_exhaustive_category_ids)

    def _known(self, category_ids: list[int]) -> Sequence[int]:
        return array("q", [one for one in category_ids if one in self.by_category]) if category_ids else ()

    def _image_entry(self, place: int, row: ImageRow) -> ImageEntry | DataError:
        where = f"{self.path}: image {row.id}"
        if row.id in self.images:
            found = f"again at images[{place}]"
            return DataError("an image id is listed twice", where=where, found=found, hint=RESTORE)
        if not (1 <= row.height <= MAX_SIDE and 1 <= row.width <= MAX_SIDE):
            return DataError(
                "an impossible image size",
                where=where,
                found=f"{row.width} x {row.height} (width x height)",
                allowed=f"1 to {MAX_SIDE} pixels",
                hint=RESTORE,
            )
        file: str | DataError | None = None
        if isinstance(row, LvisImageRow):
            file = _file_of_url(row.coco_url, where)
        elif isinstance(row, CocoImageRow):
            file = _file_in_folder(row.file_name, self.folder, where)
        return file if isinstance(file, DataError) else ImageEntry(row.id, row.height, row.width, file)

    def add_annotations(self, rows: Columns, faults: Mapping[int, DataError]) -> set[int]:
        """Check the annotations against images, categories and each other.

        Args:
            rows: those whose keys and types are right, in the order of the file.
            faults: what is wrong with a row by itself, by place.

        Returns:
            The places of the bad ones.
        """
        twice = np.ones(len(rows.ids), bool)
        twice[np.unique(rows.ids, return_index=True)[1]] = False  # the first of its id
        lost = ~np.isin(rows.image_ids, list(self.images))
        unknown = ~np.isin(rows.category_ids, list(self.known))
        errors = dict(faults)
        for number in np.flatnonzero(twice | lost | unknown).tolist():
            place, key, image_id, category_id = (int(column[number]) for column in rows[:4])
            where = f"{self.path}: annotation {key}"
            if twice[number]:
                found = f"again at annotations[{place}]"
                error = DataError("an annotation id is listed twice", where=where, found=found, hint=RESTORE)
            elif lost[number]:
                error = DataError(
                    "an annotation of an unknown image",
                    where=where,
                    found=f"image {image_id}",
                    allowed=f"one of the {len(self.images)} listed under images",
                    hint="remove the annotation, or list the image",
                )
            else:
                error = DataError(
                    "an annotation of an unknown category",
                    where=f"{where}, image {image_id}",
                    found=f"category {category_id}",
                    allowed=f"one of the {len(self.known)} listed under categories",
                    hint="remove the annotation, or list the category",
                )
            errors[place] = error
        self.problems += [Problem("annotations", place, errors[place]) for place in sorted(errors)]
        return set(errors)

    def file(self, by_image: IndexedRows) -> AnnotationFile:
        """Return the file, with its sound annotations by image."""
        categories = [self.by_category[key] for key in sorted(self.by_category)]
        lists = self.absent, self.not_exhaustive
        number = self.num_annotations
        return AnnotationFile(
            self.path.name, categories, self.images, by_image, self.problems, number, *lists
        )


def _file_of_url(url: str, where: str) -> str | DataError:
    """Return the folder and name at the end of a `coco_url`: ".../val2017/000000000139.jpg"."""
    try:
        parts = PurePosixPath(urlsplit(url).path).parts[-2:]
    except ValueError:
        parts = ()
    too_long = any(len(part.encode("utf-8", "replace")) > LONGEST_NAME for part in parts)
    if len(parts) != 2 or {"..", "/"} & set(parts) or "\0" in url or too_long:
        return DataError(
            "a coco_url that names no folder and file",
            where=where,
            found=repr(url if len(url) <= 160 else f"{url[:157]}..."),
            allowed="for example http://images.cocodataset.org/val2017/000000000139.jpg",
            hint=RESTORE,
        )
    return "/".join(parts)


def _file_in_folder(name: str, folder: str, where: str) -> str | DataError:
    """Return the path of a `file_name` that stays in its folder."""
    path = PurePosixPath(name.lstrip("/"))
    too_long = any(len(part.encode("utf-8", "replace")) > LONGEST_NAME for part in path.parts)
    if not path.parts or ".." in path.parts or "\0" in name or too_long:
        return DataError(
            "a file_name that names no file in its folder",
            where=where,
            found=repr(name if len(name) <= 80 else f"{name[:77]}..."),
            allowed="for example 000000000139.jpg",
            hint=f"write the path below {folder}/",
        )
    return f"{folder}/{path.as_posix()}"


def require_agreement(
    train: AnnotationFile, val: AnnotationFile, passed_over: Container[int] = frozenset()
) -> None:
    """Require that train and val of a dataset agree.

    Args:
        train: the file of train.
        val: the file of val.
        passed_over: ids of images that both may list.

    Raises:
        DataError: the first category that is not the same in both, or image that both list.
    """
    for problem in category_disagreements(train, val):
        raise problem
    for image_id, problem in listed_twice(train, val):
        if image_id not in passed_over:
            raise problem


def category_disagreements(first: AnnotationFile, second: AnnotationFile) -> Iterator[DataError]:
    """Yield what is wrong with each category that is not the same in both files."""
    names = [{category["id"]: category["name"] for category in file.categories} for file in (first, second)]
    for category_id in sorted(names[0].keys() | names[1].keys()):
        found = [repr(by_id[category_id]) if category_id in by_id else "absent" for by_id in names]
        if found[0] != found[1]:
            yield DataError(
                "two files disagree about a category",
                where=f"{first.name} and {second.name}",
                found=f"category {category_id}: {found[0]} and {found[1]}",
                allowed="the same categories in both",
                hint="take both from the same release",
            )


def listed_twice(first: AnnotationFile, second: AnnotationFile) -> Iterator[tuple[int, DataError]]:
    """Yield image id and what is wrong, for each image that both files list."""
    for image_id in first.images:
        if image_id in second.images:
            yield (
                image_id,
                DataError(
                    "an image is listed in both halves of a dataset",
                    where=f"{first.name} and {second.name}",
                    found=f"image {image_id}",
                    allowed="each image in one of them",
                    hint=RESTORE,
                ),
            )


def size_disagreement(image: ImageEntry, file: AnnotationFile) -> DataError | None:
    """Return what is wrong where the file gives the image another size."""
    other = file.images.get(image.image_id)
    if other is None or (other.height, other.width) == (image.height, image.width):
        return None
    return DataError(
        "two files disagree about the size of an image",
        where=f"{file.name}: image {image.image_id}",
        found=f"{other.width} x {other.height} (width x height)",
        allowed=f"{image.width} x {image.height} as in the LVIS file",
        hint="take both from the same release",
    )
