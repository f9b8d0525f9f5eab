"""What an annotation file in LVIS's or COCO's form holds, and the rules by which its rows can be trusted.

The rules say everything that reading takes for granted: keys, types, ids that point to something. Files are
read by `pipeline.data.annotations.reader`; the outlines are checked where they are drawn (`pipeline.data.bootstrap.rasterize`).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from pipeline.data.annotations.index import IndexedRows
from pipeline.data.labels.label_space import UNLABELLED_STUFF
from pipeline.runtime.errors import DataError

MAX_SIDE = 65_500
"""Pixels; JPEG's limit. Beyond it pycocotools' 32-bit pixel numbers could overflow."""

RESTORE = "take the file from its source again"

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


@dataclass(frozen=True)
class AnnotationFile:
    """A checked file.

    Args:
        name: the file's name, for messages.
        categories: as in the file, sorted by id.
        images: image id -> entry, in the order of the file.
        by_image: image id -> annotations in the order of the file; no key where there are none.
    """

    name: str
    categories: list[dict[str, Any]]
    images: Mapping[int, ImageEntry]
    by_image: Mapping[int, list[dict[str, Any]]]

    def showing(self, category_ids: Set[int]) -> set[int]:
        """The images with an annotation of one of the categories."""
        if isinstance(self.by_image, IndexedRows):
            return self.by_image.showing(category_ids)
        return {
            image_id
            for image_id, rows in self.by_image.items()
            if any(row["category_id"] in category_ids for row in rows)
        }


class RowChecks:
    """The rules for the rows of one file, and what the rows that keep them say.

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
        self._seen: set[int] = set()

    def categories(self) -> list[dict[str, Any]]:
        """The rows of the categories, by id."""
        return [self.by_category[key] for key in sorted(self.by_category)]

    def problems(self, tree: dict[str, Any], *, strict: bool = False) -> Iterator[tuple[str, int, DataError]]:
        """Goes through all rows; yields (list, place, what is wrong) of the bad ones.

        Raises:
            DataError: the first of them, if `strict`.
        """
        for key, check in (
            ("categories", self._category),
            ("images", self._image),
            ("annotations", self._annotation),
        ):
            for place, row in enumerate(tree[key]):
                try:
                    check(place, row)
                except DataError as problem:
                    if strict:
                        raise
                    yield key, place, problem

    def _category(self, place: int, row: Any) -> None:
        where = f"{self.path}: categories[{place}]"
        category_id = _whole(row, "id", where)
        _text(row, "name", where)
        if self.form == "lvis" and _text(row, "frequency", where) not in ("r", "c", "f"):
            found, allowed = repr(row["frequency"]), "r, c, f"
            raise DataError("unknown frequency", where=where, found=found, allowed=allowed, hint=RESTORE)
        if category_id in self.by_category:
            raise DataError("a category id is listed twice", where=where, found=category_id, hint=RESTORE)
        self.by_category[category_id] = row
        self.known.add(category_id)

    def _image(self, place: int, row: Any) -> None:
        image_id = _whole(row, "id", f"{self.path}: images[{place}]")
        where = f"{self.path}: image {image_id}"
        if image_id in self.images:
            found = f"again at images[{place}]"
            raise DataError("an image id is listed twice", where=where, found=found, hint=RESTORE)
        height, width = (_whole(row, key, where) for key in ("height", "width"))
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise DataError(
                "an impossible image size",
                where=where,
                found=f"{width} x {height} (width x height)",
                allowed=f"1 to {MAX_SIDE} pixels",
                hint=RESTORE,
            )
        file = None
        if self.form == "lvis":
            file = _relative_file(_text(row, "coco_url", where), where)
        elif self.form == "coco":
            file = f"{self.folder}/{_inside(_text(row, 'file_name', where), where)}"
        self.images[image_id] = ImageEntry(image_id, height, width, file)

    def _annotation(self, place: int, row: Any) -> None:
        annotation_id = _whole(row, "id", f"{self.path}: annotations[{place}]")
        where = f"{self.path}: annotation {annotation_id}"
        image_id = _whole(row, "image_id", where)
        category_id = _whole(row, "category_id", where)
        if annotation_id in self._seen:
            found = f"again at annotations[{place}]"
            raise DataError("an annotation id is listed twice", where=where, found=found, hint=RESTORE)
        self._seen.add(annotation_id)
        if image_id not in self.images:
            raise DataError(
                "an annotation of an unknown image",
                where=where,
                found=f"image {image_id}",
                allowed=f"one of the {len(self.images)} listed under images",
                hint="remove the annotation, or list the image",
            )
        if category_id not in self.known:
            raise DataError(
                "an annotation of an unknown category",
                where=f"{where}, image {image_id}",
                found=f"category {category_id}",
                allowed=f"one of the {len(self.known)} listed under categories",
                hint="remove the annotation, or list the category",
            )
        if "segmentation" not in row:
            raise _missing("segmentation", f"{where}, image {image_id}", row)


def _relative_file(url: str, where: str) -> str:
    """The folder and name at the end of a `coco_url`: ".../val2017/000000000139.jpg"."""
    try:
        parts = PurePosixPath(urlsplit(url).path).parts[-2:]
    except ValueError:
        parts = ()
    if len(parts) != 2 or {"..", "/"} & set(parts) or "\0" in url:
        raise DataError(
            "a coco_url that names no folder and file",
            where=where,
            found=repr(url),
            allowed="for example http://images.cocodataset.org/val2017/000000000139.jpg",
            hint=RESTORE,
        )
    return "/".join(parts)


def _inside(name: str, where: str) -> str:
    """A `file_name` that stays in its folder."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise DataError(
            "a file_name that names no file in its folder",
            where=where,
            found=repr(name),
            allowed="for example 000000000139.jpg",
            hint=RESTORE,
        )
    return path.as_posix()


def _whole(row: Any, key: str, where: str) -> int:
    """The whole number under `key` of a JSON object."""
    value = _value(row, key, where)
    if type(value) is not int:  # a bool is none
        raise _wrong(key, where, value, "a whole number")
    return value


def _text(row: Any, key: str, where: str) -> str:
    """The string under `key` of a JSON object."""
    value = _value(row, key, where)
    if not isinstance(value, str):
        raise _wrong(key, where, value, "a string")
    return value


def _value(row: Any, key: str, where: str) -> object:
    if not isinstance(row, dict):
        raise DataError(
            "not an entry", where=where, found=kind_of(row), allowed="a JSON object", hint=RESTORE
        )
    if key not in row:
        raise _missing(key, where, row)
    return row[key]


def _missing(key: str, where: str, row: dict[str, Any]) -> DataError:
    found = f"only {', '.join(sorted(row)) or 'an empty object'}"
    return DataError(f"the key {key!r} is missing", where=where, found=found, hint=RESTORE)


def _wrong(key: str, where: str, value: object, allowed: str) -> DataError:
    found = repr(value) if isinstance(value, str | float | bool | None) else kind_of(value)
    return DataError(
        f"the key {key!r} has a wrong value", where=where, found=found, allowed=allowed, hint=RESTORE
    )


def kind_of(value: object) -> str:
    """What JSON calls a value: "a list", "null", "a number"."""
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")


# MERGED from pipeline.data.agreement: What the annotation files of one dataset must agree about: categories, images, sizes.


def require_agreement(
    train: AnnotationFile, val: AnnotationFile, passed_over: Container[int] = frozenset()
) -> None:
    """Holds the two halves of a dataset against each other.

    Args:
        train: one half.
        val: the other.
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
    """What is wrong with each category that is not the same in both files."""
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
    """Image id and what is wrong, for each image that both files list."""
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
    """What is wrong where the file gives the image another size."""
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
