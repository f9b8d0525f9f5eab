"""Annotation files read in one piece: indexed by the `lvis` and `pycocotools` libraries, or refused by name.

Everything that these libraries take for granted is checked before (`pipeline.data.annotations.validation`). Reading a
file in pieces (`pipeline.data.annotations.index`) is faster and comes here where it meets something odd.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
from array import array
from pathlib import Path
from typing import Any

from pipeline.data.annotations.validation import NOTHING, RESTORE, AnnotationFile, RowChecks, Rows, kind_of
from pipeline.data.labels.official import IMAGE_FOLDERS, LVIS_FILES, STUFF_FILES
from pipeline.runtime.device import without_collector
from pipeline.runtime.errors import DataError, KilosegError


def read_lvis(path: Path, without: Rows = NOTHING) -> AnnotationFile:
    """Reads an LVIS file. Every image needs a `coco_url`: LVIS's val images lie partly in train2017.

    Args:
        path: the file.
        without: rows to pass over, see `pipeline.data.annotations.quarantine`.

    Raises:
        DataError: missing, malformed, or at odds with itself.
        KilosegError: the `lvis` library cannot be imported.
    """
    tree = load_tree(path, without)
    checked = RowChecks(path, "lvis")
    for _ in checked.problems(tree, strict=True):
        pass
    library = _import_lvis()

    class Index(library):  # type: ignore[misc,valid-type]
        def _load_json(self, path: object) -> object:
            return tree

    return AnnotationFile(path.name, checked.categories(), checked.images, dict(Index(str(path)).img_ann_map))


def read_stuff(path: Path, without: Rows = NOTHING) -> AnnotationFile:
    """Reads a COCO-Stuff file.

    Args:
        path: the file.
        without: rows to pass over, see `pipeline.data.annotations.quarantine`.

    Raises:
        DataError: missing, malformed, or at odds with itself.
    """
    return _read_in_coco_form(path, RowChecks(path, "stuff"), without)


def read_coco(path: Path, folder: str) -> AnnotationFile:
    """Reads any file in COCO's form.

    Args:
        path: the file.
        folder: of its images, relative to the root; each needs a `file_name` in it.

    Raises:
        DataError: missing, malformed, or at odds with itself.
    """
    return _read_in_coco_form(path, RowChecks(path, "coco", folder), NOTHING)


def _read_in_coco_form(path: Path, checked: RowChecks, without: Rows) -> AnnotationFile:
    tree = load_tree(path, without)
    for _ in checked.problems(tree, strict=True):
        pass
    from pycocotools.coco import COCO

    index = COCO()
    index.dataset = tree
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress by print
        index.createIndex()
    return AnnotationFile(path.name, checked.categories(), checked.images, dict(index.imgToAnns))


def _import_lvis() -> Any:
    """The class LVIS, without the handler that the library's import puts on the root logger."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        from lvis import LVIS
    except ImportError as error:
        raise KilosegError(
            "the lvis library cannot be imported",
            found=error,
            hint="its OpenCV wants the system's libGL: install that (libgl1), or put opencv-python-headless "
            "in the place of opencv-python",
        ) from error
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    return LVIS


def load_tree(path: Path, without: Rows = NOTHING) -> dict[str, Any]:
    """The parsed file, with its three lists, less the rows `without`.

    Raises:
        DataError: missing, unreadable, or without its lists.
    """
    if not path.is_file():
        folder = path.parent
        raise DataError(
            "no annotation file" if folder.is_dir() else "no folder with annotations",
            where=path if folder.is_dir() else folder,
            found="it does not exist",
            allowed=f"the official layout: {', '.join(f'{name}/' for name in IMAGE_FOLDERS)} and annotations/ "
            f"with {', '.join((*LVIS_FILES.values(), *STUFF_FILES))}",
            hint="put it there, or name another root",
        )
    try:
        with without_collector():
            tree = json.loads(path.read_text(encoding="utf-8"), object_hook=_compact)
    except json.JSONDecodeError as error:
        raise DataError(
            "malformed JSON",
            where=f"{path}, line {error.lineno}, column {error.colno}",
            found=error.msg,
            hint=RESTORE,
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError("unreadable annotation file", where=path, found=error, hint=RESTORE) from error
    if not isinstance(tree, dict):
        raise DataError("not an annotation file", where=path, found=kind_of(tree), allowed="a JSON object")
    for key in ("images", "annotations", "categories"):
        if not isinstance(tree.get(key), list):
            raise DataError(
                "an annotation file without one of its lists",
                where=path,
                found=f"{key}: {kind_of(tree[key])}" if key in tree else f"no {key!r}",
                allowed="lists under images, annotations and categories",
                hint=RESTORE,
            )
    return without_rows(tree, without)


def without_rows(tree: dict[str, Any], without: Rows) -> dict[str, Any]:
    """The file less these rows."""
    return tree | {
        key: [row for place, row in enumerate(tree[key]) if place not in places]
        for key, places in without.items()
    }


def _compact(tree: dict[str, Any]) -> dict[str, Any]:
    """Packs polygons while parsing: 8 bytes a coordinate for 32, gigabytes at the size of LVIS."""
    polygons = tree.get("segmentation")
    if isinstance(polygons, list) and all(isinstance(polygon, list) for polygon in polygons):
        with contextlib.suppress(TypeError, OverflowError):  # what is no polygon is named when it is drawn
            tree["segmentation"] = [array("d", polygon) for polygon in polygons]
    return tree
