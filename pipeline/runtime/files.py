"""Write files and folders that appear whole or not at all; the usual text formats and digests of files."""

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
from pipeline.runtime.locks import locked


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to write to; it takes its place only when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _called(path):  # a name of full length leaves no room for more
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes it private
        with _called(path):
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _called(path: Path, ours: Path | None = None) -> Iterator[None]:
    """Let an error of the system name what is being written, not our name for its beginning.

    Args:
        path: what is being written.
        ours: only errors about this are changed; None for all.
    """
    try:
        yield
    except OSError as error:
        if ours is None or error.filename == str(ours):
            error.filename, error.filename2 = str(path), None
        raise


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically, in UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, tree: Any, *, sort_keys: bool = False) -> None:
    """Write `tree` to `path` atomically, as indented JSON with a newline at its end."""
    write_text(path, json.dumps(tree, indent=1, sort_keys=sort_keys) + "\n")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return CSV with a header line, lines ended by "\\n"."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def read_csv(path: Path) -> list[list[float | None]]:
    """Read the numbers of a CSV file below its header line; an empty cell is None."""
    with path.open(newline="", encoding="utf-8") as file:
        return [[float(cell) if cell else None for cell in row] for row in list(csv.reader(file))[1:]]


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the digest of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextlib.contextmanager
def atomic_folder(path: Path, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield a temporary sibling of `path` to fill; it takes its place when the block succeeds, else it goes.

    What a killed run left is cleaned up first. Of two runs at once the second is refused. An older folder is
    moved aside just before the new one takes its name and removed after; a kill between the two moves leaves
    it aside, and the next start puts it back. The lock lies on the temporary folder itself.

    Args:
        path: the folder to make or replace.
        is_ours: whether an existing non-empty folder may be replaced.

    Raises:
        UsageError: another run works on it, or what lies there is not ours.
        KilosegError: the disk is full.
    """
    if path.is_symlink():
        path = path.resolve()  # the link stays, to another disk for example
    partial, aside = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.replaced")
    with (
        _called(path, partial),
        locked(partial, folder=True, error=lambda _: _being_made(path)),
    ):
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


def _being_made(path: Path) -> UsageError:
    return UsageError(
        "another run is making the same output",
        where=path,
        hint="wait for it to end, or name another output",
    )


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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_disk_full(error: OSError) -> bool:
    """Tell whether `error` says that there is no space, or that the user's share of it is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_full(where: str | Path, kept: str, *, folder: Path | None = None) -> KilosegError:
    """Return the user's view of a disk that ran full.

    Args:
        where: what was being written.
        kept: what is left of the work, for the fix.
        folder: an existing one on that disk; that of `where` if None.
    """
    return KilosegError(
        "the disk is full",
        where=where,
        found=f"{shutil.disk_usage(folder or existing_folder(where)).free / GIB:.3f} GiB free",
        hint=f"free some space and run the same command again; {kept}",
    )


def existing_folder(path: str | bytes | Path | None) -> Path:
    """Return the nearest folder above `path` that is there: `path` itself, the current one, or the root."""
    start = Path(os.fsdecode(path)) if path is not None else Path()
    for folder in (start, *start.parents, Path("/")):
        with contextlib.suppress(OSError):
            if folder.is_dir():
                return folder
    return Path("/")


@contextlib.contextmanager
def naming_full_disk(path: Path, kept: str) -> Iterator[None]:
    """Name the place where the disk ran full; the system's own error often names no file.

    Args:
        path: what is being written, in a folder that exists.
        kept: what is left of the work, for the fix.

    Raises:
        KilosegError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise disk_full(path, kept, folder=path.parent) from error
