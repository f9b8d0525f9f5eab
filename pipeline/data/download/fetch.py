"""Fetch a published dataset: archive after archive, each verified, unpacked, removed and recorded.

    ROOT/archives/NAME.zip.part     what has arrived of the archive at work
    ROOT/archives/fetched.json      what is done, so that a second run downloads nothing
    ROOT/archives/lock              held by the run at work; a dead one holds nothing

A kill at any moment loses at most what was being unpacked: files go to `.unpacking` first, where their check
sums are compared, and move to their places one by one, each whole; the archive stays until all are there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.data.download.archives import Archive
from pipeline.data.download.http import CHUNK, Wanted, download
from pipeline.runtime.device import GIB, MIB
from pipeline.runtime.errors import DataError, KilosegError, UsageError
from pipeline.runtime.files import naming_full_disk, write_json
from pipeline.runtime.locks import locked
from pipeline.runtime.progress import Progress

SPARE = 64 * MIB
"""Bytes that must stay free: directories, journals, and what others write meanwhile."""


@dataclass(frozen=True)
class Plan:
    """The work that is left.

    Args:
        todo: the archives that are not there yet, with the bytes of each that have arrived.
        done: the archives that are.
        needed: bytes of disk at the worst moment, beyond what is used now; what unpacking takes is estimated.
        free: bytes of disk.
    """

    todo: list[tuple[Archive, int]]
    done: list[Archive]
    needed: int
    free: int


def choose(archives: Sequence[Archive], only: Sequence[str] | None) -> list[Archive]:
    """Return the archives of these names; all where none is named.

    Raises:
        UsageError: an unknown name.
    """
    names = [archive.name for archive in archives]
    for name in only or ():
        if name not in names:
            raise UsageError("no such archive", where="--only", found=name, allowed=", ".join(names))
    return [archive for archive in archives if not only or archive.name in only]


def plan(root: Path, archives: Sequence[Archive]) -> Plan:
    """Return what fetching would do and need. Writes nothing."""
    record = _read_record(root)
    done = [archive for archive in archives if _is_there(root, archive, record.get(archive.name))]
    todo = [(archive, _wanted(root, archive, None).arrived) for archive in archives if archive not in done]
    used = needed = 0
    for archive, arrived in todo:
        size = archive.bytes or arrived
        unpacked = int(size * archive.growth)
        needed = max(needed, used + max(size - arrived, 0) + unpacked)
        used += unpacked - arrived  # the archive goes when it is unpacked
    place = root
    while not place.exists():
        place = place.parent
    return Plan(todo, done, needed + (SPARE if todo else 0), shutil.disk_usage(place).free)


def fetch(root: Path, archives: Sequence[Archive], *, mirror: str | None = None, pause: float = 1.0) -> int:
    """Fetch what is not there yet.

    Args:
        root: the dataset's folder, made if need be.
        archives: what to fetch.
        mirror: an address under which the archives lie by their file names, in place of the official ones.
        pause: seconds before a failed request is tried again, see `download`.

    Returns:
        The number of archives that were fetched; 0 where all was there.

    Raises:
        KilosegError: no connection, or too little space (checked before fetching and before unpacking).
        DataError: an archive that is not the published one, or damaged.
        UsageError: another run fetches to the same folder.
    """
    with (
        locked(root / "archives" / "lock", error=lambda _: _being_fetched(root)),
        naming_full_disk(root / "archives", "what has arrived stays, and it goes on from there"),
    ):
        work = plan(root, archives)
        _require_space(root, work.needed, work.free)
        for archive, arrived in work.todo:
            wanted = _wanted(root, archive, mirror)
            total = -(-(archive.bytes or 0) // MIB)
            with Progress(f"fetch {archive.file}, MiB", total, start=arrived // MIB) as progress:
                download(wanted, advance=_InMib(progress), pause=pause)
            _unpack(root, archive, wanted.path)
        for archive in work.done:  # a run was killed between the note and the removal
            _wanted(root, archive, mirror).path.unlink(missing_ok=True)
        return len(work.todo)


class _InMib:
    """Count bytes and show whole MiB."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.rest = progress, 0

    def __call__(self, steps: int) -> None:
        whole, self.rest = divmod(self.rest + steps, MIB)
        if whole:
            self.progress.advance(steps=whole)


def _wanted(root: Path, archive: Archive, mirror: str | None) -> Wanted:
    url = archive.url if mirror is None else f"{mirror.rstrip('/')}/{archive.file}"
    return Wanted(url, root / "archives" / archive.file, archive.bytes, archive.sha256)


def _being_fetched(root: Path) -> UsageError:
    return UsageError(
        "another run is fetching to the same folder",
        where=root,
        hint="wait for it to end, or name another folder",
    )


def _require_space(root: Path, needed: int, free: int) -> None:
    if needed > free:
        raise KilosegError(
            "the disk is too small",
            where=root,
            found=f"{free / GIB:.2f} GiB free",
            allowed=f"{needed / GIB:.2f} GiB or more",
            hint="free some space, name another folder, or fetch in parts: --only NAME",
        )


def _read_record(root: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((root / "archives" / "fetched.json").read_text(encoding="utf-8"))
        if isinstance(record, dict):
            return record
    return {}


def _is_there(root: Path, archive: Archive, row: Any) -> bool:
    """Whether the archive was unpacked and its files are still there, by number and names."""
    try:
        target, number = root / archive.target, int(row["files"])
        if archive.members[0].endswith("/"):
            return sum(1 for _ in target.iterdir()) >= number
        return all((target / member).is_file() for member in archive.members)
    except (OSError, TypeError, KeyError, ValueError):
        return False


def _unpack(root: Path, archive: Archive, path: Path) -> None:
    """Move the wanted files to their places, record it, and remove the archive."""
    staging, target = root / "archives" / ".unpacking", root / archive.target
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as opened:
            members = _members(opened, archive, path)
            _require_space(root, sum(one.file_size for one in members) + SPARE, shutil.disk_usage(root).free)
            with Progress(f"unpack {archive.file}, files", len(members)) as progress:
                for member in members:
                    with opened.open(member) as source, (staging / _name(member)).open("xb") as sink:
                        shutil.copyfileobj(source, sink, CHUNK)
                    progress.advance()
    except (zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, EOFError) as error:
        path.unlink()
        shutil.rmtree(staging, ignore_errors=True)
        raise DataError(
            "a damaged archive",
            where=path,
            found=error,
            hint="it was removed; run the command again, or with another source: --mirror URL",
        ) from error
    target.mkdir(exist_ok=True)
    for member in members:
        (staging / _name(member)).replace(target / _name(member))
    staging.rmdir()
    os.sync()
    record = _read_record(root) | {archive.name: {"bytes": size, "files": len(members)}}
    write_json(root / "archives" / "fetched.json", record, sort_keys=True)
    path.unlink()


def _members(opened: zipfile.ZipFile, archive: Archive, path: Path) -> list[zipfile.ZipInfo]:
    """Return the wanted files of an archive; a path that leaves the archive is an error."""
    chosen = {}
    for member in opened.infolist():
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        if (
            "/" in parts
            or ".." in parts
            or ":" in "".join(parts[:1])
            or stat.S_ISLNK(member.external_attr >> 16)
        ):
            path.unlink()
            raise DataError(
                "an archive with a path that leads out of it",
                where=path,
                found=repr(member.filename),
                hint="it was removed; do not use this source",
            )
        if not member.is_dir() and _is_wanted(member.filename, archive.members):
            chosen[_name(member)] = member
    if not chosen or (not archive.members[0].endswith("/") and len(chosen) < len(archive.members)):
        path.unlink()
        raise DataError(
            "an archive without the files wanted from it",
            where=path,
            found=f"{len(opened.infolist())} others",
            allowed=", ".join(archive.members),
            hint="it was removed; try another source: --mirror URL",
        )
    return list(chosen.values())


def _is_wanted(name: str, members: Sequence[str]) -> bool:
    path = PurePosixPath(name)
    if path.parts[0] == "__MACOSX":
        return False
    return any(f"{path.parent}/" == one if one.endswith("/") else path.name == one for one in members)


def _name(member: zipfile.ZipInfo) -> str:
    return PurePosixPath(member.filename).name
