"""Run a command as the whole process, and skip the interpreter's teardown at its end.

Teardown frees the objects of some 4,000 modules one by one, which takes 1.5 seconds with torch, torchvision
and MLflow. The operating system does that at once. Figures: docs/LOG.md, 2026-11-26.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from pipeline.runtime.signals import run_command


def run_process(function: Callable[[], object]) -> NoReturn:
    """Run a command (`run_command`) and end this process with its exit code.

    Threads are waited for, functions registered with `atexit` run and what was printed is written, as at any
    end. Under a debugger, a profiler or a measurement of coverage the interpreter ends by itself.

    Args:
        function: the command. What it raises beyond errors of the user's is a defect and keeps its traceback.
    """
    try:
        code: object = run_command(function)
    except SystemExit as ending:
        code = ending.code or 0
    if not isinstance(code, int) or is_watched():
        sys.exit(code)  # type: ignore[arg-type]
    end_process(code)


def end_process(code: int) -> NoReturn:
    """End this process at once after all that the interpreter does but the teardown: see `run_process`."""
    threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does, in this order
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # already told; or it is closed
            stream.flush()
    os._exit(code & 0xFF)


def is_watched() -> bool:
    """Return whether a debugger, a profiler or a measurement of coverage follows what this process runs."""
    monitoring = getattr(sys, "monitoring", None)  # from Python 3.12 on
    tools = [monitoring.get_tool(number) for number in range(6)] if monitoring else []
    return any((sys.gettrace(), sys.getprofile(), sys.flags.inspect, *tools))
