"""Find photographs that a dataset holds more than once, by the content of their files.

In train and val, or in train and its held-out part, a copy makes results better than they are. Files of one
size are compared by their beginning and end first, and only those that still agree are read whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.data.annotations.validation import ImageEntry
from pipeline.runtime.files import file_digest

PIECE = 4_096
NAMED = 6
"""Copies of one photograph that a message names."""


class Copies(NamedTuple):
    """One photograph under several ids.

    Args:
        splits: of each.
        image_ids: of each.
        files: of each, relative to the root.
    """

    splits: list[str]
    image_ids: list[int]
    files: list[str]

    @property
    def kind(self) -> str:
        """What is odd, in words that are the same for all of its kind."""
        places = sorted(set(self.splits))
        if len(places) == 1:
            return "one photograph under several ids"
        return f"one photograph in {', '.join(places[:-1])} and {places[-1]}"

    def describe(self) -> str:
        """Name the images."""
        named = [
            f"{file} ({split}, image {image_id})"
            for split, image_id, file in zip(self.splits, self.image_ids, self.files, strict=True)
        ]
        more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
        return ", ".join(named[:NAMED]) + more


def find_copies(root: Path, images: Mapping[str, Iterable[ImageEntry]]) -> list[Copies]:
    """Return the photographs that are listed more than once, in the order of splits and ids.

    Args:
        root: of the dataset; a file that is missing is passed over.
        images: by split.
    """
    listed = [(split, entry) for split, entries in images.items() for entry in entries if entry.file]
    groups = [listed]
    keys: tuple[Callable[[Path], Hashable], ...] = (_size, _ends, file_digest)
    for key in keys:
        groups = [part for group in groups for part in _divided(root, group, key)]
    place = {(split, entry.image_id): number for number, (split, entry) in enumerate(listed)}
    groups.sort(key=lambda group: place[group[0][0], group[0][1].image_id])
    return [
        Copies(
            [split for split, _ in group],
            [entry.image_id for _, entry in group],
            [entry.file or "" for _, entry in group],
        )
        for group in groups
    ]


def _divided(
    root: Path, group: list[tuple[str, ImageEntry]], key: Callable[[Path], Hashable]
) -> list[list[tuple[str, ImageEntry]]]:
    """Divide images by a key of their files; those that are alone are left out."""
    parts: dict[Hashable, list[tuple[str, ImageEntry]]] = {}
    for split, entry in group:
        try:
            parts.setdefault(key(root / (entry.file or "")), []).append((split, entry))
        except OSError:
            continue
    return [part for part in parts.values() if len(part) > 1]


def _size(path: Path) -> int:
    return path.stat().st_size


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(PIECE)
        file.seek(max(path.stat().st_size - PIECE, 0))
        return hashlib.sha256(head + file.read(PIECE)).digest()
