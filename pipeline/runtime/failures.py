"""Say what an error of the system or of a library means to the user: one message with place and fix.

Every command and stage ends here with what it did not foresee (`pipeline.runtime.signals.run_command`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import traceback
from pathlib import Path

from pipeline.runtime.device import MIB, is_out_of_memory, out_of_memory
from pipeline.runtime.errors import DataError, KilosegError, UsageError
from pipeline.runtime.files import disk_full, existing_folder, is_disk_full

SHARED_MEMORY = Path("/dev/shm")
"""Where processes hand each other tensors and semaphores; containers give it 64 MiB."""
_CODE = Path(__file__).resolve().parents[2]
_FLOORS = ("models", "pipeline", "stages")
_SEMAPHORES = ("synchronize.py", "heap.py", "shared_memory.py")  # of Python's multiprocessing
_ADVICE: dict[int, tuple[str, str | None]] = {  # errno: (what, fix)
    errno.EACCES: ("no permission", "give this user access to it, or name another place"),
    errno.EPERM: ("no permission", "give this user access to it, or name another place"),
    errno.EROFS: ("a read-only file system", "name another place to write to, or mount this one writable"),
    errno.ENOENT: ("no such file or folder", "check the path; something may have moved or removed it"),
    errno.ENOTDIR: ("a file stands where a folder is needed", "move it away, or name another place"),
    errno.EISDIR: ("a folder stands where a file is needed", "move it away, or name another file"),
    errno.EEXIST: ("something of this name is there already", "move it away, or name another place"),
    errno.ENOTEMPTY: ("a folder is not empty", "see what else works in it, then run the command again"),
    errno.ENAMETOOLONG: (
        "a name or path is too long",
        "shorten it: most file systems take 255 bytes a name, and 4,096 a path",
    ),
    errno.ELOOP: ("a link leads back to itself", "remove the link, or let it lead to a file or folder"),
    errno.EMLINK: ("too many links", "the file system takes no more: name another place"),
    errno.EMFILE: ("too many open files", "raise the limit (ulimit -n 4096), or lower runtime.num_workers"),
    errno.ENFILE: ("too many open files", "end other programs, or raise fs.file-max of this machine"),
    errno.EFBIG: ("a file grew too large", "raise the limit (ulimit -f), or name another file system"),
    errno.EIO: ("the disk or network share failed", "check it (dmesg), then run the command again"),
    errno.ENODEV: ("a device is missing", "check that it is there and mounted"),
    errno.ENXIO: ("a device is missing", "check that it is there and mounted"),
    errno.ENOTCONN: ("a network share is gone", "mount it again, then run the command again"),
    errno.ESTALE: ("a network share was exchanged", "mount it again, then run the command again"),
    errno.EPIPE: ("what reads the output is gone", None),
    errno.EBUSY: ("something else uses this", "end what uses it, or name another place"),
    errno.ENOLCK: ("the file system cannot lock files", "name a place on another file system"),
    errno.ENOTSUP: ("the file system cannot do this", "name a place on another file system"),
}


def explained(error: BaseException) -> KilosegError | None:
    """Return the user's view of an error; None for a defect of ours, which keeps its traceback."""
    if isinstance(error, KilosegError):
        return error
    if is_out_of_memory(error):
        return out_of_memory(error)
    if is_shared_memory(error):
        return shared_memory_failed(error)
    if isinstance(error, OSError):
        return of_system(error)
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # pathlib's, before 3.13
        return of_system(OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(error).partition(" from ")[2]))
    if isinstance(error, UnicodeError):
        return _of_text(error)
    if type(error).__name__ == "ImageSizeError":  # of models.backbone
        return UsageError("the backbone cannot take images of this size", where="model.backbone", found=error)
    return None


def of_system(error: OSError) -> KilosegError:
    """Return the user's view of whatever the operating system, or a network, refused."""
    if is_disk_full(error):
        folder = existing_folder(error.filename)
        return disk_full(error.filename or folder, "what was finished is kept", folder=folder)
    where = " and ".join(_shown(name) for name in (error.filename, error.filename2) if name is not None)
    what, hint = _ADVICE.get(error.errno or 0, ("", None))
    if error.errno == errno.ENOENT and not where and not _has_working_folder():
        what, hint = "the working folder is gone", "change into a folder that exists"
    if not what:
        network = isinstance(error, ConnectionError | TimeoutError) or _is_of_network(error)
        what = "the network did not answer" if network else "the system refused a call"
        hint = "check the address and the connection" if network else None
    found = error.strerror if isinstance(error.strerror, str) else str(error) or type(error).__name__
    return KilosegError(what, where=where or _place(error), found=found, hint=hint)


def is_shared_memory(error: BaseException) -> bool:
    """Tell whether `error` is a failure of /dev/shm, which torch, semaphores and workers need."""
    if isinstance(error, RuntimeError):
        return "shared memory" in str(error)  # torch's own, and what it says of a worker with a bus error
    if not isinstance(error, OSError) or error.filename is not None:
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return any(
        "multiprocessing" in frame.filename and frame.filename.endswith(_SEMAPHORES) for frame in frames
    )


def shared_memory_failed(error: BaseException) -> KilosegError:
    """Return the user's view of a failure of /dev/shm."""
    state, remedy = "it is not there", "mount it"
    with contextlib.suppress(OSError):
        space = shutil.disk_usage(SHARED_MEMORY)
        state = f"{space.free / MIB:.0f} of {space.total / MIB:.0f} MiB free"
        remedy = "give it more (docker run --shm-size=2g, or --ipc=host)"
        if not os.access(SHARED_MEMORY, os.W_OK):
            state, remedy = "it cannot be written", "mount it writable"
    return KilosegError(
        "the shared memory between processes failed",
        where=SHARED_MEMORY,
        found=f"{state}; {str(error).partition(chr(10))[0]}",
        hint=f"{remedy}, or work in one process: set runtime.num_workers to 0",
    )


def _of_text(error: UnicodeError) -> KilosegError:
    """Return the user's view of a name or file that is no text in the encoding at hand."""
    if isinstance(error, UnicodeEncodeError):
        what, hint = "a name has characters that cannot be written", "rename it; UTF-8 has all real ones"
        found = ascii(error.object[max(0, error.start - 40) : error.end + 40])
    else:
        what, hint = "a text file is not in UTF-8", "save it again as UTF-8"
        found = str(error)
    return DataError(what, where=_place(error), found=found, hint=hint)


def _is_of_network(error: OSError) -> bool:
    """Tell whether a name could not be looked up, or a library of requests gave up."""
    module = type(error).__module__.partition(".")[0]
    return module in ("socket", "urllib", "requests", "urllib3", "http", "ssl")


def _has_working_folder() -> bool:
    try:
        return Path.cwd().is_dir()
    except OSError:
        return False


def _shown(name: object) -> str:
    """Return a file's name for a message, bytes that are no text escaped."""
    return os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else str(name)


def _place(error: BaseException) -> str | None:
    """Return the last place in our code that an error went through: file, line and function."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(_CODE) and path.relative_to(_CODE).parts[0] in _FLOORS:
            return f"{path.relative_to(_CODE)}, line {frame.lineno}, in {frame.name}"
    return None
