"""A process beside the driver that outlives it: if the driver is killed, it ends the sweep's runs in MLflow.

The driver holds the other end of its standard input. A word there says that the runs are ended; the end
without one says that the driver is no more. Until then the process has imported next to nothing.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.runtime.errors import KilosegError

_WORD = b"ended\n"
_HANDOVER_SECONDS = 120.0
_LOCK_SECONDS = 5.0  # the kernel may close the pipe before it lets go of the driver's lock


class Survivor:
    """The driver's hold on the process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def dismiss(self) -> None:
        """The runs are ended: nothing is left to do."""
        self._process.communicate(_WORD)


@contextlib.contextmanager
def survived(folder: Path) -> Iterator[Survivor]:
    """Runs the process for the sweep in `folder`; however the block ends, it acts unless dismissed."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # the terminal's Ctrl-C is not for it
    )
    assert process.stdin is not None
    with process.stdin:
        yield Survivor(process)


@contextlib.contextmanager
def driving(folder: Path) -> Iterator[None]:
    """Holds the sweep in `folder` for this driver, once what ends the runs of the one before is done.

    Raises:
        KilosegError: another driver holds it.
    """
    from pipeline.runtime.locks import locked

    with contextlib.ExitStack() as held:
        with locked(folder / ".ending", wait_seconds=_HANDOVER_SECONDS, holder="the end of the sweep before"):
            held.enter_context(locked(folder / ".lock", holder="another `pipeline tune`"))
        yield


def main(folder: Path) -> None:
    """Waits for the driver's end; then ends its runs, unless it did or another driver has the sweep."""
    if sys.stdin.buffer.read():
        return
    from pipeline.runtime.locks import locked
    from pipeline.tuning.finish import end_runs
    from pipeline.tuning.sweep import Sweep

    with contextlib.suppress(KilosegError), locked(folder / ".ending"):
        with locked(folder / ".lock", wait_seconds=_LOCK_SECONDS):
            pass  # nobody drives it
        end_runs(Sweep(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
