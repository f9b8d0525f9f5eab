"""TODO"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.runtime.errors import KilosegError


@contextlib.contextmanager
def locked(path: Path, *, wait_seconds: float = 0.0, holder: str = "another process") -> Iterator[None]:
    """Holds a lock that ends with this process, however that ends.

    Args:
        path: of the lock's file.
        wait_seconds: how long to wait for another holder to end.
        holder: who may hold it, for the message.

    Raises:
        KilosegError: somebody else holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        end = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise KilosegError(
                        f"{holder} is at work here", where=path.parent, hint="wait for it to end, or stop it"
                    ) from None
                time.sleep(0.2)
        os.ftruncate(file, 0)
        os.write(file, str(os.getpid()).encode())  # for people: who holds it
        yield
    finally:
        os.close(file)
