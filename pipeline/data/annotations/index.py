"""Keep the annotations of a file as ids and places in it, and read a segmentation when it is drawn.

LVIS's train file is a gigabyte of JSON: parsed whole, it takes gigabytes of memory. Of each annotation only
three ids, its place in the list and the bytes of its segmentation are kept, 48 bytes in all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.data.annotations.json_text import parse
from pipeline.runtime.errors import DataError


class Span(NamedTuple):
    """The bytes of a file that hold one segmentation."""

    path: Path
    start: int
    end: int


class Annotation(NamedTuple):
    """One annotation of an image.

    Args:
        id: of the annotation.
        category_id: of its category.
        segmentation: where it stands in the file.
        place: of the row in the list of annotations.
    """

    id: int
    category_id: int
    segmentation: Span
    place: int


class Columns(NamedTuple):
    """What is kept of rows, (N,) int64 each.

    Args:
        places: in the list of annotations.
        ids: of the annotations.
        image_ids: of their images.
        category_ids: of their categories.
        starts: first byte of each segmentation in the file.
        ends: the byte after its last one.
    """

    places: np.ndarray
    ids: np.ndarray
    image_ids: np.ndarray
    category_ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def from_rows(cls, rows: Sequence[tuple[int, ...]]) -> Columns:
        """Turn rows of six numbers, or none, into columns."""
        table = np.array(rows, np.int64).reshape(-1, len(cls._fields))
        return cls(*np.ascontiguousarray(table.T))

    @classmethod
    def join(cls, parts: Sequence[Columns]) -> Columns:
        """Return the rows of several parts, or of none."""
        return cls(*(np.concatenate(some) for some in zip(cls.from_rows([]), *parts, strict=True)))

    def take(self, chosen: np.ndarray) -> Columns:
        """Return the rows with these numbers, or where a mask is true."""
        return Columns(*(column[chosen] for column in self))


class IndexedRows(Mapping[int, list[Annotation]]):
    """Map an image id to its annotations in the order of the file; no key for an image without any.

    Args:
        path: the file.
        columns: its rows.
    """

    def __init__(self, path: Path, columns: Columns) -> None:
        self._path = path
        self._columns = columns.take(np.argsort(columns.image_ids, kind="stable"))
        images, first, number = np.unique(self._columns.image_ids, return_index=True, return_counts=True)
        bounds = np.stack([first, first + number], axis=1).tolist()
        self._bounds = dict(zip(images.tolist(), bounds, strict=True))

    def __getitem__(self, image_id: int) -> list[Annotation]:
        start, end = self._bounds[image_id]
        places, ids, _, category_ids, starts, ends = (column[start:end].tolist() for column in self._columns)
        return [
            Annotation(key, category, Span(self._path, first, last), place)
            for place, key, category, first, last in zip(places, ids, category_ids, starts, ends, strict=True)
        ]

    def __iter__(self) -> Iterator[int]:
        return iter(self._bounds)

    def __len__(self) -> int:
        return len(self._bounds)

    def categories(self, image_id: int) -> set[int]:
        """Return the categories annotated on an image."""
        start, end = self._bounds.get(image_id, (0, 0))
        return set(self._columns.category_ids[start:end].tolist())

    def showing(self, category_ids: Set[int]) -> set[int]:
        """Return the ids of the images with an annotation of one of the categories."""
        wanted = np.isin(self._columns.category_ids, list(category_ids))
        return set(np.unique(self._columns.image_ids[wanted]).tolist())


class RowReader:
    """Read segmentations from their places. A context manager that holds the files open."""

    def __enter__(self) -> RowReader:
        self._files: dict[Path, int] = {}
        return self

    def __exit__(self, *exception: object) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)

    def read(self, segmentation: Any, where: str) -> Any:
        """Return what stands at a `Span`; anything else is a segmentation already.

        Args:
            segmentation: the span.
            where: names the annotation in the error.

        Raises:
            DataError: the file is no longer what it was.
        """
        if not isinstance(segmentation, Span):
            return segmentation
        path, start, end = segmentation
        try:
            if path not in self._files:
                self._files[path] = os.open(path, os.O_RDONLY)
            text = os.pread(self._files[path], end - start, start)
            if len(text) < end - start:
                raise ValueError(f"it ends before byte {end}")
            return parse(text)
        except (OSError, ValueError, RecursionError) as error:
            raise changed(where, error) from error


def changed(where: str | Path, found: object) -> DataError:
    """Return the error of a file that is no longer what it was when its rows were located."""
    return DataError(
        "an annotation file that changed while it was read",
        where=where,
        found=found,
        hint="run it again, and leave the file alone meanwhile",
    )
