"""Reading annotation files in LVIS's and COCO's form, and refusing the ones that cannot be trusted.

The files are indexed by the `lvis` and `pycocotools` libraries, after everything these take for granted was
checked: keys, types, ids that point to something. The outlines themselves are checked where they are drawn
(`pipeline.data.masks`), which the workers share.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from pipeline.data.label_space import UNLABELLED_STUFF
from pipeline.errors import DataProblem, Problem

MAX_SIDE = 65_500
"""Pixels; JPEG's limit. Beyond it pycocotools' 32-bit pixel numbers could overflow."""

RESTORE = "take the file from its source again"


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


def read_lvis(path: Path) -> AnnotationFile:
    """Reads an LVIS file. Every image needs a `coco_url`: LVIS's val images lie partly in train2017.

    Raises:
        DataProblem: missing, malformed, or at odds with itself.
        Problem: the `lvis` library cannot be imported.
    """
    tree = _load(path)
    categories = _check_categories(tree, path, "frequency")
    images = _check_images(tree, path, with_file=True)
    _check_annotations(tree, path, images, {category["id"] for category in categories})
    library = _import_lvis()

    class Index(library):  # type: ignore[misc,valid-type]
        def _load_json(self, path: object) -> object:
            return tree

    return AnnotationFile(path.name, categories, images, dict(Index(str(path)).img_ann_map))


def read_stuff(path: Path) -> AnnotationFile:
    """Reads a COCO-Stuff file.

    Raises:
        DataProblem: missing, malformed, or at odds with itself.
    """
    tree = _load(path)
    categories = _check_categories(tree, path)
    images = _check_images(tree, path, with_file=False)
    known = {category["id"] for category in categories} | set(UNLABELLED_STUFF)
    _check_annotations(tree, path, images, known)
    from pycocotools.coco import COCO

    index = COCO()
    index.dataset = tree
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress by print
        index.createIndex()
    return AnnotationFile(path.name, categories, images, dict(index.imgToAnns))


def _import_lvis() -> Any:
    """The class LVIS, without the handler that the library's import puts on the root logger."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        from lvis import LVIS
    except ImportError as error:
        raise Problem(
            "the lvis library cannot be imported",
            found=error,
            mend="its OpenCV wants the system's libGL: install that (libgl1), or put opencv-python-headless "
            "in the place of opencv-python",
        ) from error
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    return LVIS


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        folder = path.parent
        raise DataProblem(
            "no annotation file" if folder.is_dir() else "no folder with annotations",
            where=path if folder.is_dir() else folder,
            found="it does not exist",
            allowed="the official layout: train2017/, val2017/ and annotations/ with lvis_v1_train.json, "
            "lvis_v1_val.json, stuff_train2017.json, stuff_val2017.json",
            mend="put it there, or name another root",
        )
    try:
        tree = json.loads(path.read_text(encoding="utf-8"), object_hook=_compact)
    except json.JSONDecodeError as error:
        raise DataProblem(
            "malformed JSON",
            where=f"{path}, line {error.lineno}, column {error.colno}",
            found=error.msg,
            mend=RESTORE,
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataProblem("unreadable annotation file", where=path, found=error, mend=RESTORE) from error
    if not isinstance(tree, dict):
        raise DataProblem("not an annotation file", where=path, found=_kind(tree), allowed="a JSON object")
    for key in ("images", "annotations", "categories"):
        if not isinstance(tree.get(key), list):
            raise DataProblem(
                "an annotation file without one of its lists",
                where=path,
                found=f"{key}: {_kind(tree[key])}" if key in tree else f"no {key!r}",
                allowed="lists under images, annotations and categories",
                mend=RESTORE,
            )
    return tree


def _compact(tree: dict[str, Any]) -> dict[str, Any]:
    """Packs polygons while parsing: 8 bytes a coordinate for 32, gigabytes at the size of LVIS."""
    polygons = tree.get("segmentation")
    if isinstance(polygons, list) and all(isinstance(polygon, list) for polygon in polygons):
        with contextlib.suppress(TypeError, OverflowError):  # what is no polygon is named when it is drawn
            tree["segmentation"] = [array("d", polygon) for polygon in polygons]
    return tree


def _check_categories(tree: dict[str, Any], path: Path, *more_keys: str) -> list[dict[str, Any]]:
    seen: set[int] = set()
    for place, category in enumerate(tree["categories"]):
        where = f"{path}: categories[{place}]"
        category_id = _whole(category, "id", where)
        for key in ("name", *more_keys):
            _text(category, key, where)
        if more_keys and category["frequency"] not in ("r", "c", "f"):
            raise DataProblem(
                "unknown frequency",
                where=where,
                found=repr(category["frequency"]),
                allowed="r, c, f",
                mend=RESTORE,
            )
        if category_id in seen:
            raise DataProblem("a category id is listed twice", where=where, found=category_id, mend=RESTORE)
        seen.add(category_id)
    return sorted(tree["categories"], key=lambda category: category["id"])


def _check_images(tree: dict[str, Any], path: Path, *, with_file: bool) -> dict[int, ImageEntry]:
    images: dict[int, ImageEntry] = {}
    for place, image in enumerate(tree["images"]):
        image_id = _whole(image, "id", f"{path}: images[{place}]")
        where = f"{path}: image {image_id}"
        if image_id in images:
            raise DataProblem(
                "an image id is listed twice", where=where, found=f"again at images[{place}]", mend=RESTORE
            )
        height, width = (_whole(image, key, where) for key in ("height", "width"))
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise DataProblem(
                "an impossible image size",
                where=where,
                found=f"{width} x {height} (width x height)",
                allowed=f"1 to {MAX_SIDE} pixels",
                mend=RESTORE,
            )
        file = _relative_file(_text(image, "coco_url", where), where) if with_file else None
        images[image_id] = ImageEntry(image_id, height, width, file)
    return images


def _relative_file(url: str, where: str) -> str:
    """The folder and name at the end of a `coco_url`: ".../val2017/000000000139.jpg"."""
    try:
        parts = PurePosixPath(urlsplit(url).path).parts[-2:]
    except ValueError:
        parts = ()
    if len(parts) != 2 or {"..", "/"} & set(parts) or "\0" in url:
        raise DataProblem(
            "a coco_url that names no folder and file",
            where=where,
            found=repr(url),
            allowed="for example http://images.cocodataset.org/val2017/000000000139.jpg",
            mend=RESTORE,
        )
    return "/".join(parts)


def _check_annotations(
    tree: dict[str, Any], path: Path, images: Mapping[int, ImageEntry], categories: set[int]
) -> None:
    seen: set[int] = set()
    for place, annotation in enumerate(tree["annotations"]):
        annotation_id = _whole(annotation, "id", f"{path}: annotations[{place}]")
        where = f"{path}: annotation {annotation_id}"
        image_id = _whole(annotation, "image_id", where)
        category_id = _whole(annotation, "category_id", where)
        if annotation_id in seen:
            raise DataProblem(
                "an annotation id is listed twice",
                where=where,
                found=f"again at annotations[{place}]",
                mend=RESTORE,
            )
        seen.add(annotation_id)
        if image_id not in images:
            raise DataProblem(
                "an annotation of an unknown image",
                where=where,
                found=f"image {image_id}",
                allowed=f"one of the {len(images)} listed under images",
                mend="remove the annotation, or list the image",
            )
        if category_id not in categories:
            raise DataProblem(
                "an annotation of an unknown category",
                where=f"{where}, image {image_id}",
                found=f"category {category_id}",
                allowed=f"one of the {len(categories)} listed under categories",
                mend="remove the annotation, or list the category",
            )
        if "segmentation" not in annotation:
            raise _missing("segmentation", f"{where}, image {image_id}", annotation)


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
        raise DataProblem(
            "not an entry", where=where, found=_kind(row), allowed="a JSON object", mend=RESTORE
        )
    if key not in row:
        raise _missing(key, where, row)
    return row[key]


def _missing(key: str, where: str, row: dict[str, Any]) -> DataProblem:
    found = f"only {', '.join(sorted(row)) or 'an empty object'}"
    return DataProblem(f"the key {key!r} is missing", where=where, found=found, mend=RESTORE)


def _wrong(key: str, where: str, value: object, allowed: str) -> DataProblem:
    found = repr(value) if isinstance(value, str | float | bool | None) else _kind(value)
    return DataProblem(
        f"the key {key!r} has a wrong value", where=where, found=found, allowed=allowed, mend=RESTORE
    )


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")
