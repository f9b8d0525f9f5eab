"""Find a folder for sockets, whose paths have at most 107 bytes: TMPDIR of a cluster's job may be longer."""

from __future__ import annotations

import functools
import multiprocessing.util
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

LONGEST_SOCKET_PATH = 107
_OF_MULTIPROCESSING = "/pymp-xxxxxxxx/listener-xxxxxxxx"
_SHORT_PLACES = (Path("/tmp"), Path("/var/tmp"))


def socket_folder(
    wanted: Path, below: int, *, name: str, places: Sequence[Path] = _SHORT_PLACES
) -> Path | None:
    """Return a folder under which paths of sockets fit: `wanted`, or this user's own in a short place.

    Args:
        wanted: the usual place.
        below: bytes that follow the folder in a socket's path, with the slash.
        name: of the folder in a short place; the user's number is added.
        places: short places to try.

    Returns:
        The folder, or None if none fits and can be written.
    """
    if _fits(wanted, below):
        return wanted
    for place in places:
        folder = place / f"{name}-{os.getuid()}"
        if not _fits(folder, below):
            continue
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_uid != os.getuid() or folder.is_symlink():  # somebody else took the name
                folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=place))
        except OSError:
            continue
        if _fits(folder, below) and os.access(folder, os.W_OK):
            return folder
    return None


@functools.cache
def shorten_worker_sockets() -> None:
    """Let worker processes hand over their results in a short folder where TMPDIR is too long for sockets.

    Call it before workers are started. Other temporary files stay in TMPDIR.
    """
    usual = Path(tempfile.gettempdir())
    found = socket_folder(usual, len(_OF_MULTIPROCESSING), name="kiloseg")
    if found is None or found == usual:
        return
    print(f"TMPDIR is too long for sockets; those of worker processes go to {found}", file=sys.stderr)
    before, tempfile.tempdir = tempfile.tempdir, str(found)
    try:
        multiprocessing.util.get_temp_dir()  # makes the folder of this process and its workers
    finally:
        tempfile.tempdir = before


def _fits(folder: Path, below: int) -> bool:
    return len(os.fsencode(folder)) + below <= LONGEST_SOCKET_PATH
