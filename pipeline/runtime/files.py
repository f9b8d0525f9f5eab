"""A file that appears whole or not at all, whatever ends the process that writes it."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.runtime.device import GIB
from pipeline.runtime.errors import KilosegError, UsageError


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` to write to; it takes its place only when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` atomically, in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


# MERGED from pipeline.data.atomic_folder: A folder that appears under its name only when it is whole.


@contextlib.contextmanager
def atomic_folder(path: Path, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """A temporary sibling of `path` to fill; it takes its place when the block succeeds, else it vanishes.

    What a killed run left is cleaned up first. Of two runs at once the second is refused. An older folder is
    moved aside just before the new one takes its name and removed after; a kill between the two moves leaves
    it aside, and the next start puts it back.

    Args:
        path: the folder to make or replace.
        is_ours: whether an existing non-empty folder may be replaced.

    Raises:
        UsageError: another run works on it, or what lies there is not ours.
        KilosegError: the disk is full.
    """
    partial, aside = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.replaced")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _claim(partial, path)
    try:
        if aside.exists() and not path.exists():
            aside.rename(path)
        _remove(aside)
        _check_replaceable(path, is_ours)
        for leftover in partial.iterdir():
            _remove(leftover)
        with naming_full_disk(path, "nothing half made is left, and an earlier output is untouched"):
            yield partial
        if path.exists():
            path.rename(aside)
        partial.rename(path)
        _remove(aside)
    except BaseException:
        _remove(partial)
        raise
    finally:
        os.close(lock)


def _check_replaceable(path: Path, is_ours: Callable[[Path], bool]) -> None:
    if not path.exists() or (path.is_dir() and (not any(path.iterdir()) or is_ours(path))):
        return
    raise UsageError(
        "will not overwrite what kiloseg did not make",
        where=path,
        found="a folder with other content" if path.is_dir() else "a file",
        allowed="a new name, an empty folder, or the output of an earlier run",
        hint="name another output, or move this away",
    )


def _claim(partial: Path, path: Path) -> int:
    """Locks the temporary folder for this process and returns the lock's descriptor.

    The lock lies on the folder itself, so it ends with the process however that ends.
    """
    import fcntl

    while True:
        partial.mkdir(exist_ok=True)
        try:
            lock = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:
            continue  # the other run has just finished
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UsageError(
                "another run is making the same output",
                where=path,
                hint="wait for it to end, or name another output",
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if partial.stat().st_ino == os.fstat(lock).st_ino:
                return lock
        os.close(lock)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# MERGED from pipeline.data.disk: A disk that runs full while a dataset is made, told with the place it happened at.


@contextlib.contextmanager
def naming_full_disk(path: Path, kept: str) -> Iterator[None]:
    """Turns the system's error, which often names no file, into a message.

    Args:
        path: what is being written, in a folder that exists.
        kept: what is left of the work, for the fix.

    Raises:
        KilosegError: no space, or the user's share of it used up.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise KilosegError(
            "the disk is full",
            where=path,
            found=f"{shutil.disk_usage(path.parent).free / GIB:.3f} GiB free",
            hint=f"free some space and run the same command again; {kept}",
        ) from error


def write_json(path: Path, tree: Any, *, indent: int | None = 1, sort_keys: bool = False) -> None:
    """Write plain types to `path` atomically, as JSON with a newline at the end."""
    write_text(path, json.dumps(tree, indent=indent, sort_keys=sort_keys) + "\n")


def csv_text(header: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Return a header and rows as the text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def read_csv(path: Path) -> list[list[float]]:
    """Read a CSV file of numbers, without its header."""
    with path.open(newline="", encoding="utf-8") as file:
        return [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
