"""The annotations of a file as places in it: found once, piece by piece in any process, and read when drawn.

LVIS's train file is a gigabyte of JSON. Parsed in one piece it takes one core minutes and gigabytes. Instead
the list of annotations is cut between two rows into pieces, each is parsed alone, and of each row no more is
kept than its ids and the bytes it takes up; whoever draws an image parses its rows again. A cut in the wrong
place leaves brackets or quotes open, so that pieces which all parse are the list. A file that looks otherwise
than expected is not read here: `pipeline.data.annotations.fallback` reads it in one piece, and names what is wrong.
"""

from __future__ import annotations

import json
import mmap
import os
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from pipeline.runtime.device import without_collector
from pipeline.runtime.errors import DataError

PIECE = 2**20
"""Bytes, about."""
BEGIN = re.compile(rb'"annotations"\s*:\s*\[\s*')
BETWEEN = re.compile(rb"\}\s*,\s*\{")
END = re.compile(rb'\}(?=\s*\]\s*(?:,\s*"|\}))')
STAND_IN = "these are read in pieces"


class Span(NamedTuple):
    """Bytes of a file: one row, or several with what separates them."""

    path: Path
    start: int
    end: int


class Columns(NamedTuple):
    """What is kept of rows, (N,) int64 each: three ids, and the first byte and the one after the last."""

    ids: np.ndarray
    image_ids: np.ndarray
    category_ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def join(cls, parts: list[Columns]) -> Columns:
        """The rows of several pieces, or of none."""
        nothing = cls(*(np.zeros(0, np.int64) for _ in cls._fields))
        return cls(*(np.concatenate(some) for some in zip(nothing, *parts, strict=True)))

    def take(self, places: np.ndarray) -> Columns:
        """The rows at these places, or where a mask is true."""
        return Columns(*(column[places] for column in self))


def cut(path: Path) -> tuple[dict[str, Any], list[Span]] | None:
    """The file without its annotations, and the pieces that these are in; None if it looks otherwise."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            begin = BEGIN.search(text)
            if begin is None:
                return None
            start = end = begin.end()
            if text[start : start + 1] != b"]":
                last = END.search(text, start)
                if last is None:
                    return None
                end = last.end()
            tree = parse(text[:start] + json.dumps(STAND_IN).encode() + text[end:])
            pieces = [Span(path, *bounds) for bounds in _pieces(text, start, end)]
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(tree, dict) or tree.get("annotations") != [STAND_IN]:
        return None
    return tree, pieces


def _pieces(text: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        between = BETWEEN.search(text, min(start + PIECE, end), end)
        yield start, between.start() + 1 if between else end
        start = between.end() - 1 if between else end


def index(piece: Span) -> Columns | None:
    """The rows of a piece; None where they look otherwise than expected. This runs in any process."""
    try:
        with piece.path.open("rb") as file:
            text = os.pread(file.fileno(), piece.end - piece.start, piece.start)
        with without_collector():
            rows = parse(b"[" + text + b"]")
            ids = [[row[key] for row in rows] for key in ("id", "image_id", "category_id")]
            complete = all("segmentation" in row for row in rows)
        if not complete or any(set(map(type, column)) != {int} for column in ids):
            return None
        bounds = [bound for match in BETWEEN.finditer(text) for bound in (match.start() + 1, match.end() - 1)]
        if len(bounds) != 2 * len(rows) - 2:
            return None  # the pattern is in a row too
        places = np.array([0, *bounds, len(text)], np.int64) + piece.start
        columns = [np.array(column, np.int64) for column in ids]
        return Columns(columns[0], columns[1], columns[2], places[::2], places[1::2])
    except (OSError, ValueError, OverflowError, RecursionError, KeyError, TypeError):
        return None


def parse(text: bytes) -> Any:
    """The value of JSON text, which like Python's may hold NaN and Infinity.

    Raises:
        ValueError: it is none.
    """
    try:
        return orjson.loads(text)
    except ValueError:
        return json.loads(text.decode())


class IndexedRows(Mapping[int, list[dict[str, Any]]]):
    """Image id -> annotations in the order of the file, each with a `Span` as its segmentation.

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

    def __getitem__(self, image_id: int) -> list[dict[str, Any]]:
        start, end = self._bounds[image_id]
        ids, _, category_ids, starts, ends = (column[start:end].tolist() for column in self._columns)
        return [
            {"id": key, "category_id": category, "segmentation": Span(self._path, first, last)}
            for key, category, first, last in zip(ids, category_ids, starts, ends, strict=True)
        ]

    def __iter__(self) -> Iterator[int]:
        return iter(self._bounds)

    def __len__(self) -> int:
        return len(self._bounds)

    def showing(self, category_ids: Set[int]) -> set[int]:
        """The images with an annotation of one of the categories."""
        wanted = np.isin(self._columns.category_ids, list(category_ids))
        return set(np.unique(self._columns.image_ids[wanted]).tolist())


class RowReader:
    """Reads segmentations from their places. A context manager, which holds the files open."""

    def __enter__(self) -> RowReader:
        self._files: dict[Path, int] = {}
        return self

    def __exit__(self, *exception: object) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)

    def read(self, place: Any, where: str) -> Any:
        """What is at a `Span`; anything else is the segmentation itself.

        Raises:
            DataError: the file is no longer what it was.
        """
        if not isinstance(place, Span):
            return place
        try:
            if place.path not in self._files:
                self._files[place.path] = os.open(place.path, os.O_RDONLY)
            text = os.pread(self._files[place.path], place.end - place.start, place.start)
            return parse(text)["segmentation"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                "an annotation file that changed while it was read",
                where=where,
                found=error,
                hint="run it again, and leave the file alone meanwhile",
            ) from error
