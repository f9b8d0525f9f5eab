"""Find the images that an annotation file names, also where it writes their names a little differently.

Tools write the folder before the name, back slashes, another case, or another Unicode form of the same
letters (macOS keeps é as two characters). Such a name is found where exactly one file can be meant; any other
name that is not there is explained by its likely cause.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from pipeline.data.store.listing import list_files


def plain(name: str) -> str:
    """Return what names of the same file have in common, whatever their case and Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class ImageFolder:
    """The images of one split.

    Args:
        root: of the dataset.
        folder: name of the split's folder.
    """

    def __init__(self, root: Path, folder: str) -> None:
        self.root, self.folder = root, folder
        self._names: dict[str, set[str]] = {}

    def find(self, name: str) -> str | None:
        """Return the path of an image below the folder; None where no file or several could be meant.

        Args:
            name: as in the annotation file.
        """
        for one in _spellings(name, self.folder):
            if self._exists(one):
                return one
        for one in _spellings(name, self.folder):
            alike = self._by_plain_name.get(plain(one), [])
            if len(alike) == 1:
                return alike[0]
        return None

    def explain(self, name: str) -> str | None:
        """Return the likely cause why a name is not found, if there is one."""
        names = list(_spellings(name, self.folder))
        alike = self._by_plain_name.get(plain(names[-1]), [])
        if len(alike) > 1:
            return f"several files could be meant: {', '.join(alike[:3])}"
        wanted = PurePosixPath(names[-1])
        decoded = unquote(str(wanted))
        if decoded != str(wanted) and self._exists(decoded):
            return f"the name is percent-encoded; the file is called {decoded}"
        for path in self._all:
            if plain(path.rpartition("/")[2]) == plain(wanted.name):
                return f"a file of this name lies at {self.folder}/{path}"
        for path in self._all:
            if plain(PurePosixPath(path).stem) == plain(wanted.stem):
                return f"there is {self.folder}/{path}, with another ending"
        if (self.root / names[-1]).is_file():
            return f"the file lies outside {self.folder}/, which holds the images of this split"
        for other in sorted(self.root.iterdir()):
            if other.is_dir() and other.name != self.folder and (other / names[-1]).is_file():
                return f"a file of this name lies in {other.name}/"
        return None

    def _exists(self, name: str) -> bool:
        parent, _, last = name.rpartition("/")
        if parent not in self._names:
            place = self.root / self.folder / parent
            self._names[parent] = {path.name for path in place.iterdir()} if place.is_dir() else set()
        return last in self._names[parent]

    @cached_property
    def _all(self) -> list[str]:
        base = self.root / self.folder
        return [path.relative_to(base).as_posix() for path in list_files(base)]

    @cached_property
    def _by_plain_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in self._all:
            found.setdefault(plain(path), []).append(path)
        return found


def _spellings(name: str, folder: str) -> Iterator[str]:
    """Yield a name as it is, with slashes, and without the way to the folder."""
    yield name
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in parts:
        return
    if folder in parts[:-1]:
        parts = parts[len(parts) - 1 - parts[::-1].index(folder) + 1 :]
    if "/".join(parts) != name:
        yield "/".join(parts)
