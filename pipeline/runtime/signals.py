"""End a command: between two steps when it is asked to stop, and with an exit code whatever happens.

An error of the user's input or machine (`pipeline.runtime.errors`) is one message, no traceback.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from pipeline.runtime.errors import INTERRUPTED, KilosegError
from pipeline.runtime.failures import explained, of_system


class Interrupted(KeyboardInterrupt):
    """Report a request to stop: Ctrl-C or a scheduler's SIGTERM. Carries the shell's exit code."""

    def __init__(self, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(signal.Signals(signal_number).name)


class GracefulStop:
    """Turn Ctrl-C and SIGTERM into a request that long work answers between two steps. A context manager.

    The work calls `check` where its state is whole and saved. A second signal does not wait. `on_request` is
    called once, by the first one.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.on_request: Callable[[], None] | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
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
        """Raise `Interrupted` when a stop was asked for."""
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)


def run_command(function: Callable[[], object]) -> int:
    """Call `function`; turn what it raises into a message on stderr and an exit code.

    Returns:
        0 when it returns, else the code of the error: see `pipeline.runtime.errors`. What the system or a
        library refuses is worded by `pipeline.runtime.failures`. A defect of ours keeps its traceback (code
        1): hiding it would only make it harder to report.
    """
    terminated: list[Interrupted] = []  # typer and Ray turn it into their own KeyboardInterrupt or SystemExit

    def raise_interrupted(signal_number: int, frame: object) -> None:
        terminated.append(Interrupted(signal_number))
        raise terminated[0]

    with contextlib.suppress(ValueError):  # raised outside the main thread, where signals cannot be set
        signal.signal(signal.SIGTERM, raise_interrupted)
    _print_any_name()
    try:
        function()
        _flush()
    except (KeyboardInterrupt, SystemExit) as ending:
        interruption = ending if isinstance(ending, Interrupted) else next(iter(terminated), None)
        if interruption is not None:
            print(f"\nstopped by {interruption}", file=sys.stderr)
            return interruption.exit_code
        if isinstance(ending, SystemExit):
            return _end(ending)
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        problem = explained(error)
        if problem is None:
            raise
        return _fail(problem)
    return 0


def _fail(problem: KilosegError) -> int:
    print(f"error: {problem}", file=sys.stderr)
    return problem.exit_code


def _end(ending: SystemExit) -> int:
    """Let typer's exit go on, unless what was printed did not arrive: a full disk behind `> FILE`."""
    try:
        _flush()
    except OSError as error:
        return _fail(of_system(error))
    raise ending


def _flush() -> None:
    """Write out what was printed, while a failure can still be told."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):  # or the interpreter tries once more as it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _print_any_name() -> None:
    """Escape what the terminal's encoding lacks, and bytes of file names that are no text."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
