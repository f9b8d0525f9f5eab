"""List the files of a dataset: links to folders are followed, names that begin with a dot are passed over.

Such names are what other programs leave behind: `.ipynb_checkpoints`, `._photo.jpg`, `.cache`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.runtime.errors import DataError


def list_files(folder: Path, endings: Sequence[str] | None = None) -> list[Path]:
    """Return the files under a folder, at any depth, sorted.

    Args:
        folder: may be a link itself.
        endings: lower-case suffixes such as ".png"; None for all files.

    Raises:
        DataError: a name that is not UTF-8.
        OSError: a folder that cannot be read.
    """
    found = []
    for path in _walk(folder, set()):
        if endings is None or path.suffix.lower() in endings:
            require_utf8(path)
            found.append(path)
    return sorted(found)


def visible(paths: Iterator[Path], folder: Path) -> list[Path]:
    """Return the paths of a folder, sorted, without those of hidden files and folders in it."""
    found = []
    for path in paths:
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            require_utf8(path)
            found.append(path)
    return sorted(found)


def require_utf8(path: Path) -> None:
    """Require that a path can be written to the manifest."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(
            "a file name that is not UTF-8",
            where=str(path).encode("utf-8", "backslashreplace").decode(),
            hint="rename it: convmv -r -f latin1 -t utf8 FOLDER",
        ) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; whoever opens it says so
        return False


def _walk(folder: Path, above: set[tuple[int, int]]) -> Iterator[Path]:
    """Yield the files below; a link to a folder above it is not entered, as it would never end."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    folders = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = folder / entry.name
            if _is_folder(entry):
                folders.append(path)
            else:
                yield path
    for one in folders:
        yield from _walk(one, above | {here})
