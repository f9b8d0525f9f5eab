"""Verify archives that a user brought, and what was unpacked from them."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

from pipeline.data.download.archives import BROUGHT, Archive
from pipeline.data.download.tree import listed
from pipeline.runtime.errors import DataError
from pipeline.runtime.files import file_digest


def archive_problems(root: Path, dataset: str) -> list[DataError]:
    """Return what is wrong with the archives that lie in a dataset's folder or in its folder `archives`.

    Each is held against its published size and digest. What it holds is looked for under the root.

    Args:
        root: the dataset's folder.
        dataset: a layout; for those without known archives there is nothing to verify.
    """
    problems = []
    for archive in BROUGHT.get(dataset, ()):
        for folder in (root, root / "archives"):
            path = folder / archive.file
            if path.is_file():
                problems += _problems(root, path, archive)
    return problems


def _problems(root: Path, path: Path, archive: Archive) -> list[DataError]:
    hint = f"take {archive.file} again: {archive.url}"
    if problem := _digest_problem(path, archive, hint):
        return [problem]
    try:
        names = listed(path)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, DataError) as error:
        return [DataError("a damaged archive", where=path, found=error, hint=hint)]
    absent = [name for name in names if not (root / name).is_file()]
    if not absent:
        return []
    return [
        DataError(
            "an archive that is not unpacked whole",
            where=path,
            found=f"{len(absent):,} of {len(names):,} files are not there, first {absent[0]}",
            hint=f"unpack it in {root}",
        )
    ]


def _digest_problem(path: Path, archive: Archive, hint: str) -> DataError | None:
    size = path.stat().st_size
    found, allowed = f"{size:,} bytes", f"{archive.bytes or 0:,} bytes"
    if archive.bytes in (None, size):
        for algorithm, published in (("sha256", archive.sha256), ("md5", archive.md5)):
            if published is None:
                continue
            digest = file_digest(path, algorithm)
            if digest == published:
                return None
            found, allowed = f"{algorithm} {digest}", f"{algorithm} {published}"
            break
        else:
            return None
    return DataError(
        "an archive that is not the published one", where=path, found=found, allowed=allowed, hint=hint
    )
