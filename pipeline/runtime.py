"""The process itself: threads, device, seeds, exit codes, interruption, progress, atomic writes.

Nothing here knows what kiloseg computes. torch is imported inside the functions that need it, so that the
command line can answer `--help` without it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.errors import INTERRUPTED, MemoryProblem, Problem

if TYPE_CHECKING:
    import torch

GIB = 1024**3
_MOST_WORKERS = 8
_REFRESH_SECONDS = 0.5  # of the note beside a progress bar


class Interrupted(KeyboardInterrupt):
    """A polite request to stop: Ctrl-C or a scheduler's SIGTERM. Carries the shell's exit code."""

    def __init__(self, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(signal.Signals(signal_number).name)


class StopRequest:
    """Turns Ctrl-C and SIGTERM into a request that long work answers between two steps. A context manager.

    The work calls `check` where its state is whole and saved. A second signal does not wait. `on_request` is
    called once, by the first one.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.on_request: Callable[[], None] | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        with contextlib.suppress(ValueError):  # not the main thread: a sweep's trial is stopped by its driver
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, signal_number: int, frame: object) -> None:
        if self.signal_number is not None:
            raise Interrupted(signal_number)
        self.signal_number = signal_number
        print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)
        if self.on_request is not None:
            self.on_request()

    def check(self) -> None:
        """Raises `Interrupted` when a stop was asked for."""
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)


def run(function: Callable[[], object]) -> int:
    """Calls `function` and turns what it raises into a message on stderr and an exit code.

    Returns:
        0 when it returns, else the code of the error: see `pipeline.errors`. A defect of ours keeps its
        traceback (code 1): hiding it would only make it harder to report.
    """
    terminated: list[Interrupted] = []  # typer and Ray make of it a KeyboardInterrupt or exit of their own

    def raise_interrupted(signal_number: int, frame: object) -> None:
        terminated.append(Interrupted(signal_number))
        raise terminated[0]

    with contextlib.suppress(ValueError):  # raised outside the main thread, where signals cannot be set
        signal.signal(signal.SIGTERM, raise_interrupted)
    try:
        function()
    except Problem as problem:
        return _fail(problem)
    except (KeyboardInterrupt, SystemExit) as ending:
        interruption = ending if isinstance(ending, Interrupted) else next(iter(terminated), None)
        if interruption is not None:
            print(f"\nstopped by {interruption}", file=sys.stderr)
            return interruption.exit_code
        if isinstance(ending, SystemExit):
            raise
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _fail(_disk_full(error))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(out_of_memory(error))
    return 0


def _fail(problem: Problem) -> int:
    print(f"error: {problem}", file=sys.stderr)
    return problem.exit_code


def _disk_full(error: OSError) -> Problem:
    return Problem(
        "the disk is full",
        where=error.filename or Path.cwd(),
        found=f"{shutil.disk_usage(Path.cwd()).free / GIB:.2f} GiB free",
        mend="free some space and run the same command again: what was finished is kept",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that an allocation failed: torch's on the GPU or on the CPU, or Python's own."""
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "CUDA out of memory" in text
        or "can't allocate memory" in text  # DefaultCPUAllocator
    )


def out_of_memory(error: BaseException) -> MemoryProblem:
    """The user's view of an allocation that failed."""
    return MemoryProblem(
        "out of memory",
        found=str(error).partition("\n")[0] or None,
        mend="lower train.batch_size or train.crop_size; `pipeline memory` predicts what fits",
    )


def set_threads(threads: int | str) -> int:
    """Sets torch's CPU threads and returns the number.

    Args:
        threads: a positive number, or "auto" for the cores this process may use. Processes that share a
            machine must share its cores: two with all threads each can be ten times slower than one.
    """
    import torch

    number = (
        len(os.sched_getaffinity(0)) if threads == "auto" and hasattr(os, "sched_getaffinity") else threads
    )
    number = (os.cpu_count() or 1) if number == "auto" else int(number)
    torch.set_num_threads(number)
    keep_freed_memory()
    return number


def resolve_num_workers(num_workers: int | Literal["auto"]) -> int:
    """The number itself, or for "auto" the cores this process may use less one, at most 8."""
    if num_workers != "auto":
        return num_workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(cores - 1, _MOST_WORKERS))


def keep_freed_memory() -> None:
    """Lets the C library keep freed blocks below 2 GiB for reuse, instead of handing them to the kernel.

    Otherwise every large tensor of every step is made of fresh pages, whose first touch cost half of a
    training step of the softmax baseline (docs/LOG.md, 2026-11-22). Only glibc has these switches.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**31 - 1)  # M_MMAP_THRESHOLD: no block of its own from the kernel below this
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: what is free at the end of the heap is never handed back


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """For making millions of objects, none of them garbage, which it would go through again and again."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one, else the CPU.

    Raises:
        Problem: CUDA was asked for and is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise Problem(
            "no CUDA device is usable",
            where="runtime.device",
            found=f"{name}, while torch {torch.__version__} sees no GPU",
            allowed="auto, cpu",
            mend="check `nvidia-smi` and the driver, or set runtime.device to cpu",
        )
    return torch.device(name)


class PeakMemory:
    """Peak memory since construction, in GiB.

    On CUDA it is the most the allocator had handed out. On the CPU torch keeps no such count, and it is the
    high-water mark of the process's resident memory, which includes the interpreter and libraries (about
    half a GiB) and cannot be reset. `kind` says which, and the two are never to be compared.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kind = "cuda_allocator" if device.type == "cuda" else "process_resident"
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(device)

    def gib(self) -> float:
        """The peak so far, in GiB."""
        if self.device.type == "cuda":
            import torch

            return torch.cuda.max_memory_allocated(self.device) / GIB
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / GIB


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


def git_commit(folder: Path) -> str:
    """The commit checked out in `folder`, with "-dirty" where tracked files differ from it."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "not a git repository"
    return result.stdout.strip()


class Progress:
    """A rich progress bar on a terminal, else one line at intervals. Use as a context manager.

    Args:
        title: what is being done.
        total: how many steps there are.
        start: how many of them were done before.
        seconds: the interval between lines when stderr is not a terminal.
    """

    def __init__(self, title: str, total: int, *, start: int = 0, seconds: float = 60.0) -> None:
        self.title, self.total, self.done, self.first, self.seconds = title, total, start, start, seconds
        self.began = self.said = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, note="")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif exception[0] is None:
            seconds = time.monotonic() - self.began
            print(f"{self.title}: {self.done}/{self.total} in {seconds:.0f} s", file=sys.stderr, flush=True)

    def advance(self, note: str | Callable[[], str] = "", steps: int = 1) -> None:
        """Counts `steps` as done.

        Args:
            note: shown beside the count; a function is called only when it is shown.
            steps: how many.
        """
        self.done += steps
        if self._bar is not None:
            self._bar.update(self._task, advance=steps)
        now = time.monotonic()
        if now - self.said < (self.seconds if self._bar is None else _REFRESH_SECONDS):
            return
        self.said = now
        said = note if isinstance(note, str) else note()
        if self._bar is not None:
            self._bar.update(self._task, note=said)
            return
        left = (now - self.began) / max(self.done - self.first, 1) * (self.total - self.done)
        print(
            f"{self.title}: {self.done}/{self.total} {said} ({_duration(left)} left)",
            file=sys.stderr,
            flush=True,
        )


def _duration(seconds: float) -> str:
    """59 s, 12 min, 49 h 05 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
