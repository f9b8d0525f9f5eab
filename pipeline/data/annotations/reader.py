"""Read annotation files: split them into rows, check the rows, and index where the segmentations stand.

The rows of annotations are decoded in pieces that worker processes share. Of each no more is kept than
`pipeline.data.annotations.index` says. Rows that break a rule are named with their place and left out.
"""

from __future__ import annotations

import codecs
import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from pipeline.data.annotations.index import Columns, IndexedRows, changed
from pipeline.data.annotations.json_text import REFUSALS, JsonText, Text, check_utf8, kind_of, parse
from pipeline.data.annotations.schema import RESTORE, AnnotationRow, decode_row, missing_key
from pipeline.data.annotations.validation import NOTHING, AnnotationFile, Form, RowChecks, Rows
from pipeline.data.labels.official import IMAGE_FOLDERS, LVIS_FILES, STUFF_FILES
from pipeline.runtime.errors import DataError
from pipeline.runtime.progress import Progress
from pipeline.runtime.workers import WorkerPool, ordered_map

ROWS_PER_PIECE = 1_000
"""Annotations decoded at once: about a megabyte."""
LISTS = ("images", "annotations", "categories")


class Source(NamedTuple):
    """An annotation file to read.

    Args:
        path: the file.
        form: see `RowChecks`.
        folder: of the images, with "coco".
        without: rows to pass over, see `pipeline.data.annotations.quarantine`.
    """

    path: Path
    form: Form
    folder: str = ""
    without: Rows = NOTHING


class Piece(NamedTuple):
    """Rows of annotations that are decoded together.

    Args:
        path: of the file.
        start: byte at which the first row begins.
        end: the byte after the last row.
        first: place of the first row in the list.
    """

    path: Path
    start: int
    end: int
    first: int


def read_files(sources: Sequence[Source], pool: WorkerPool | None = None) -> list[AnnotationFile]:
    """Read annotation files that must be sound.

    Args:
        sources: the files.
        pool: processes that share the work.

    Raises:
        DataError: the first thing that is wrong, in the order of the files and their rows.
    """
    files = []
    for found in check_files(sources, pool):
        if isinstance(found, DataError):
            raise found
        if found.problems:
            raise found.problems[0].error
        files.append(found)
    return files


def check_files(
    sources: Sequence[Source], pool: WorkerPool | None = None
) -> Iterator[AnnotationFile | DataError]:
    """Read annotation files as far as they can be read; yields the error of each that cannot.

    Args:
        sources: the files.
        pool: processes that share the work.
    """
    scanned = [_scan(source) for source in sources]
    pieces = [piece for one in scanned if not isinstance(one, DataError) for piece in one[1]]
    with Progress("read annotation files, pieces", len(pieces)) as progress:
        indexed = zip(pieces, ordered_map(index_piece, pieces, pool, chunk=1), strict=True)
        for source, one in zip(sources, scanned, strict=True):
            if isinstance(one, DataError):
                yield one
                continue
            checks, own = one
            columns, faults = [], dict[int, DataError]()
            for _, (some, wrong) in islice(indexed, len(own)):
                columns.append(some)
                faults |= wrong
                progress.advance(source.path.name)
            yield _finish(source, checks, Columns.join(columns), faults)


def _scan(source: Source) -> tuple[RowChecks, list[Piece]] | DataError:
    """Check the categories and images of a file and cut its annotations into pieces."""
    path = source.path
    if not path.is_file():
        return _no_file(path)
    try:
        with path.open("rb") as file:
            empty = os.fstat(file.fileno()).st_size == 0
            # not closed here: the map ends with the last row that refers to it
            text = JsonText(b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        return _unreadable(path, error)
    try:
        check_utf8(text.text)
        lists = text.split(dict[str, msgspec.Raw])
        rows = {key: msgspec.json.decode(lists[key], type=list[msgspec.Raw]) for key in LISTS}
    except (*REFUSALS, KeyError) as error:
        return _explain(path, text.text, error)
    checks = RowChecks(path, source.form, source.folder)
    for key, add in (("categories", checks.add_category), ("images", checks.add_image)):
        for place, part in enumerate(rows[key]):
            if place not in source.without.get(key, ()):
                add(text, part, place)
    annotations = rows["annotations"]
    checks.num_annotations = len(annotations)
    pieces = []
    for first in range(0, len(annotations), ROWS_PER_PIECE):
        last = annotations[min(first + ROWS_PER_PIECE, len(annotations)) - 1]
        pieces.append(Piece(path, text.place(annotations[first]), text.place(last) + len(last), first))
    return checks, pieces


def index_piece(piece: Piece) -> tuple[Columns, dict[int, DataError]]:
    """Decode the rows of a piece; this runs in any process.

    Returns:
        Those with all ids, and by their places what is wrong with rows by themselves.

    Raises:
        DataError: the file changed since it was scanned.
    """
    found: list[tuple[int, ...]] = []
    faults = {}
    try:
        with piece.path.open("rb") as file:
            rows = os.pread(file.fileno(), piece.end - piece.start, piece.start)
        if len(rows) < piece.end - piece.start:
            raise ValueError(f"it ends before byte {piece.end}")
        text = JsonText(b"[" + rows + b"]")
        parts = text.split(list[msgspec.Raw])
    except (OSError, *REFUSALS) as error:
        raise changed(piece.path, error) from error
    for place, part in enumerate(parts, start=piece.first):
        row = decode_row(text, part, AnnotationRow, f"{piece.path}: annotations", place)
        if isinstance(row, DataError):
            faults[place] = row
            continue
        start = length = len(row.segmentation)
        if length:
            start = piece.start - 1 + text.place(row.segmentation)
        else:
            where = f"{piece.path}: annotation {row.id}, image {row.image_id}"
            faults[place] = missing_key("segmentation", where, parse(text.original(part)))
        found.append((place, row.id, row.image_id, row.category_id, start, start + length))
    return Columns.from_rows(found), faults


def _finish(
    source: Source, checks: RowChecks, rows: Columns, faults: Mapping[int, DataError]
) -> AnnotationFile:
    """Hold the annotations of a file against its images and categories, and index the sound ones."""
    without = source.without.get("annotations", ())
    if without:
        rows = rows.take(~np.isin(rows.places, list(without)))
    bad = checks.add_annotations(rows, {place: faults[place] for place in faults if place not in without})
    if bad:
        rows = rows.take(~np.isin(rows.places, list(bad)))
    return checks.file(IndexedRows(source.path, rows))


def _explain(path: Path, text: Text, error: Exception) -> DataError:
    """Name what is wrong with a file that does not split into rows."""
    if bytes(text[:2]) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        found = f"{error}; it begins like UTF-16"
        return DataError("unreadable annotation file", where=path, found=found, hint="save it as UTF-8")
    try:
        tree = json.loads(bytes(text).decode())
    except json.JSONDecodeError as malformed:
        where = f"{path}, line {malformed.lineno}, column {malformed.colno}"
        return DataError("malformed JSON", where=where, found=malformed.msg, hint=RESTORE)
    except (ValueError, RecursionError) as odd:
        return _unreadable(path, odd)
    if not isinstance(tree, dict):
        return DataError("not an annotation file", where=path, found=kind_of(tree), allowed="a JSON object")
    for key in LISTS:
        if not isinstance(tree.get(key), list):
            return DataError(
                "an annotation file without one of its lists",
                where=path,
                found=f"{key}: {kind_of(tree[key])}" if key in tree else f"no {key!r}",
                allowed="lists under images, annotations and categories",
                hint=RESTORE,
            )
    return _unreadable(path, error)


def _unreadable(path: Path, found: object) -> DataError:
    return DataError("unreadable annotation file", where=path, found=found, hint=RESTORE)


def _no_file(path: Path) -> DataError:
    folder = path.parent
    return DataError(
        "no annotation file" if folder.is_dir() else "no folder with annotations",
        where=path if folder.is_dir() else folder,
        found="it does not exist",
        allowed=f"the official layout: {', '.join(f'{name}/' for name in IMAGE_FOLDERS)} "
        f"and annotations/ with {', '.join((*LVIS_FILES.values(), *STUFF_FILES))}",
        hint="put it there, or name another root",
    )
