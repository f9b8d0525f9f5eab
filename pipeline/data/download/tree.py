"""Unpack a whole archive, zip or tar, with its folders, and list what is in one."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from pipeline.runtime.errors import DataError

BLOCK = 2**20


def unpack_tree(path: Path, folder: Path, advance: Callable[[], object] = lambda: None) -> list[str]:
    """Unpack every file of an archive into an empty folder.

    Args:
        path: .zip, .tar or .tgz.
        folder: to unpack into.
        advance: called after each file.

    Returns:
        The files by their paths in the archive.

    Raises:
        DataError: a path that leads out of the archive, or a link.
        zipfile.BadZipFile, tarfile.TarError, EOFError, OSError: a damaged archive, or the disk.
    """
    names = []
    for name, opened in _files(path):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened() as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, BLOCK)
        names.append(name)
        advance()
    return names


def listed(path: Path) -> list[str]:
    """Return the files in an archive by their paths."""
    return [name for name, _ in _files(path)]


def _files(path: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """Each file: its path in the archive, and what opens it before the next one is asked for."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as packed:
            for entry in packed.infolist():
                if not entry.is_dir() and _is_wanted(entry.filename):
                    link = stat.S_ISLNK(entry.external_attr >> 16)
                    yield _inside(entry.filename, path, link), partial(packed.open, entry)
        return
    with tarfile.open(path) as archive:
        for member in archive:
            if not member.isdir() and _is_wanted(member.name):
                yield _inside(member.name, path, not member.isfile()), partial(_open_member, archive, member)


def _open_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    opened = archive.extractfile(member)
    assert opened is not None  # a file, not a link or folder
    return opened


def _is_wanted(name: str) -> bool:
    return PurePosixPath(name).parts[:1] != ("__MACOSX",) and not PurePosixPath(name).name.startswith("._")


def _inside(name: str, path: Path, link: bool) -> str:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if link or not parts or "/" in parts or ".." in parts or ":" in parts[0]:
        raise DataError(
            "an archive with a path that leads out of it",
            where=path,
            found=repr(name),
            hint="remove it, and do not use this source",
        )
    return "/".join(parts)
