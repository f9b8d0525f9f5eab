"""Lock a file or folder against other processes; the kernel frees the lock however the process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.runtime.errors import KilosegError

_RETRY_SECONDS = 0.2


@contextlib.contextmanager
def locked(
    path: Path,
    *,
    wait_seconds: float = 0.0,
    holder: str = "another process",
    error: Callable[[str], KilosegError] | None = None,
    own_process_only: bool = False,
    folder: bool = False,
) -> Iterator[None]:
    """Hold an exclusive lock on `path` until the block or this process ends.

    Args:
        path: the lock's file, made if need be. It then holds the process's number, for people, and stays.
        wait_seconds: how long to wait for another holder to end.
        holder: who may hold it, for the usual message.
        error: makes another error than the usual one from what the lock's file says (the holder's number).
        own_process_only: take a record lock (`lockf`). Forked workers that are still ending do not hold it,
            but it does not exclude other threads of this process. Without it (`flock`) forks hold it too.
        folder: lock `path` itself, a folder, made if need be; the holder may rename or remove it.

    Raises:
        KilosegError: somebody else holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    take = fcntl.lockf if own_process_only else fcntl.flock
    end = time.monotonic() + wait_seconds
    while (descriptor := _acquire(path, take, folder)) is None:
        if time.monotonic() >= end:
            found = "" if folder else path.read_text(encoding="utf-8")
            raise error(found) if error else _held(holder, path)
        time.sleep(_RETRY_SECONDS)
    try:
        if not folder:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        os.close(descriptor)


def _acquire(path: Path, take: Callable[[int, int], object], folder: bool) -> int | None:
    """Return the descriptor that holds the lock, or None while somebody else does."""
    while True:
        if folder:
            path.mkdir(exist_ok=True)
        flags = os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT
        try:
            descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            continue  # the folder's holder has just renamed or removed it
        try:
            take(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # lockf may say either
            os.close(descriptor)
            return None
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)  # it was renamed or removed before the lock was ours


def _held(holder: str, path: Path) -> KilosegError:
    return KilosegError(f"{holder} is at work here", where=path.parent, hint="wait for it to end, or stop it")
