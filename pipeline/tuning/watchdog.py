"""End a sweep's MLflow runs when its driver is killed: a child process that outlives the driver.

The driver holds the child's stdin open. A message on stdin: the driver has ended its runs. End of file
without a message: the driver died, and the child ends the runs. Until then the child imports almost nothing.

The next `--resume` could end the runs too, but a sweep that nobody resumes would show RUNNING forever.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.runtime.errors import KilosegError

_MESSAGE = b"ended\n"
_HANDOVER_SECONDS = 120.0
_LOCK_SECONDS = 5.0  # the kernel may close the pipe before it releases the driver's lock


class Watchdog:
    """Hold the driver's end of the child's stdin."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def dismiss(self) -> None:
        """Tell the child that the runs have ended, and wait for its exit."""
        self._process.communicate(_MESSAGE)


@contextlib.contextmanager
def watch(folder: Path) -> Iterator[Watchdog]:
    """Start the child for the sweep in `folder`. However the block ends, it acts unless dismissed."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in the terminal must not reach it
    )
    assert process.stdin is not None
    with process.stdin:
        yield Watchdog(process)


@contextlib.contextmanager
def hold_sweep(folder: Path) -> Iterator[None]:
    """Lock the sweep in `folder` for this driver, after the watchdog of an earlier driver has finished.

    Raises:
        KilosegError: another driver holds it.
    """
    from pipeline.runtime.locks import locked

    with contextlib.ExitStack() as held:
        with locked(folder / ".ending", wait_seconds=_HANDOVER_SECONDS, holder="the end of the sweep before"):
            held.enter_context(locked(folder / ".lock", holder="another `pipeline tune`"))
        yield


def main(folder: Path) -> None:
    """Wait until the driver exits; then end its runs, unless it did or another driver has the sweep."""
    if not sys.stdin.buffer.read():
        with contextlib.suppress(KilosegError):
            send_results(folder)


def send_results(folder: Path) -> bool:
    """Send to MLflow what a sweep without a driver has left, and end its runs.

    Returns:
        Whether everything was sent.

    Raises:
        KilosegError: a driver or another process is at work there, or the store cannot be reached.
    """
    from pipeline.runtime.locks import locked
    from pipeline.tuning.finish import end_runs
    from pipeline.tuning.sweep import Sweep

    with locked(folder / ".ending"):
        with locked(folder / ".lock", wait_seconds=_LOCK_SECONDS):
            pass  # no driver holds it
        return end_runs(Sweep(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
