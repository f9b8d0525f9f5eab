"""Exit codes, messages and interruption of commands."""

from __future__ import annotations

import errno
import functools
import os
import signal
import time

import pytest
import typer

from pipeline.runtime.errors import DataError, KilosegError, MemoryLimitError, UsageError
from pipeline.runtime.signals import GracefulStop, Interrupted, run_command


def raising(error: BaseException):
    def function() -> None:
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KilosegError("it broke", where="here", found=1, allowed=2, hint="do that"), 1, "fix:     do that"),
        (UsageError("no such key"), 2, "no such key"),
        (DataError("bad image"), 3, "bad image"),
        (MemoryLimitError("too big"), 4, "too big"),
        (RuntimeError("CUDA out of memory. Tried to allocate 3 GiB"), 4, "out of memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            4,
            "out of memory",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Interrupted(signal.SIGTERM), 143, "SIGTERM"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, "where:   /x/y"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 1, "the disk is full"),
    ],
)
def test_each_failure_has_its_code_and_one_message_without_traceback(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raising(error)) == code
    stderr = capsys.readouterr().err
    assert said in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_ended_by_a_signal_has_its_code(number: signal.Signals, code: int) -> None:
    app = typer.Typer(add_completion=False)

    @app.command()
    def wait() -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)

    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the suite is a background job
    try:
        try:
            found = run_command(functools.partial(app, args=[]))
        except SystemExit as exit_:  # typer's own
            found = int(str(exit_.code))
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert found == code


def test_success_is_0_and_a_defect_keeps_its_traceback() -> None:
    assert run_command(lambda: None) == 0
    with pytest.raises(RuntimeError, match="a defect"):
        run_command(raising(RuntimeError("a defect")))
    with pytest.raises(ValueError, match="a defect"):
        run_command(raising(ValueError("a defect")))


def test_a_stop_is_answered_between_steps_and_a_second_one_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored in a background job of a shell
    with GracefulStop() as stop:
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM
        with pytest.raises(Interrupted) as caught:
            stop.check()
        assert caught.value.exit_code == 143
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
