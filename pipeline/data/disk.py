"""A disk that runs full while a dataset is made, told with the place it happened at."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import Problem
from pipeline.runtime import GIB


@contextlib.contextmanager
def naming_full_disk(path: Path, kept: str) -> Iterator[None]:
    """Turns the system's error, which often names no file, into a message.

    Args:
        path: what is being written, in a folder that exists.
        kept: what is left of the work, for the way out.

    Raises:
        Problem: no space, or the user's share of it used up.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Problem(
            "the disk is full",
            where=path,
            found=f"{shutil.disk_usage(path.parent).free / GIB:.3f} GiB free",
            mend=f"free some space and run the same command again; {kept}",
        ) from error
