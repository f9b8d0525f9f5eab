"""Reading all annotation files of a dataset at once, by as many processes as there are.

Each file is indexed (`pipeline.data.annotations.index`) and its rows are held against the rules of
`pipeline.data.annotations.validation`. Where one breaks a rule, or a file looks otherwise than expected, that file is
read in one piece instead (`pipeline.data.annotations.fallback`): that names what is wrong, and reads what only looks
odd.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.data.annotations.fallback import read_coco, read_lvis, read_stuff, without_rows
from pipeline.data.annotations.index import Columns, IndexedRows, cut, index
from pipeline.data.annotations.validation import NOTHING, AnnotationFile, Form, RowChecks, Rows
from pipeline.runtime.errors import DataError
from pipeline.runtime.progress import Progress
from pipeline.runtime.workers import WorkerPool, ordered_map


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


def read_files(sources: Sequence[Source], pool: WorkerPool | None = None) -> list[AnnotationFile]:
    """Reads annotation files.

    Args:
        sources: the files.
        pool: processes that share the work.

    Raises:
        DataError: the first file that is missing, malformed, or at odds with itself.
    """
    found = [cut(source.path) for source in sources]
    pieces = [piece for parts in found if parts for piece in parts[1]]
    columns: dict[Path, list[Columns | None]] = {source.path: [] for source in sources}
    with Progress("read annotation files, pieces", len(pieces)) as progress:
        for piece, part in zip(pieces, ordered_map(index, pieces, pool, chunk=1), strict=True):
            columns[piece.path].append(part)
            progress.advance(piece.path.name)
    files = []
    for source, parts in zip(sources, found, strict=True):
        file = _checked(source, parts[0], columns[source.path]) if parts else None
        files.append(file or _in_one_piece(source))
    return files


def _checked(source: Source, tree: dict[str, Any], parts: list[Columns | None]) -> AnnotationFile | None:
    """The indexed file; None where something is or may be wrong."""
    if not isinstance(tree.get("images"), list) or not isinstance(tree.get("categories"), list):
        return None
    whole = [part for part in parts if part is not None]
    if len(whole) < len(parts):
        return None
    columns = Columns.join(whole)
    kept = np.ones(len(columns.ids), bool)
    kept[[place for place in source.without.get("annotations", ()) if place < len(kept)]] = False
    columns = columns.take(kept)
    checked = RowChecks(source.path, source.form, source.folder)
    try:
        for _ in checked.problems(without_rows(tree | {"annotations": []}, source.without), strict=True):
            pass
    except DataError:
        return None
    if (
        len(np.unique(columns.ids)) < len(columns.ids)
        or not np.isin(columns.image_ids, list(checked.images)).all()
        or not np.isin(columns.category_ids, list(checked.known)).all()
    ):
        return None
    rows = IndexedRows(source.path, columns)
    return AnnotationFile(source.path.name, checked.categories(), checked.images, rows)


def _in_one_piece(source: Source) -> AnnotationFile:
    if source.form == "coco":
        return read_coco(source.path, source.folder)
    read = read_lvis if source.form == "lvis" else read_stuff
    return read(source.path, source.without)
