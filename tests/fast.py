"""What `make test-fast` refuses: tests that start a process or train without saying so by a marker.

The run leaves out the tests marked `process`, `training` or `slow`. With KILOSEG_FAST set, a test that is
left in and starts a process after all, or takes a training step, fails and names the marker that it lacks.
Small programs that a library asks for something (git, nvidia-smi) count as part of the test.
"""

from __future__ import annotations

import multiprocessing.process
import os
import subprocess
from pathlib import Path
from typing import Any, NoReturn

SMALL = {"git", "nvidia-smi", "uname", "ldconfig", "gcc", "cc", "ld", "sh"}


def refuse(marker: str, what: str) -> NoReturn:
    """Fail the test that is running."""
    raise AssertionError(
        f"{what}: mark the test with pytest.mark.{marker}, so that make test-fast leaves it out"
    )


def guard() -> None:
    """Refuse processes and training steps in this process from now on."""
    start = subprocess.Popen.__init__

    def popen(self: Any, args: Any, *rest: Any, **options: Any) -> None:
        program = args.split()[0] if isinstance(args, str) else os.fspath(args[0])
        if Path(program).name not in SMALL:
            refuse("process", f"starts {program}")
        start(self, args, *rest, **options)

    subprocess.Popen.__init__ = popen  # type: ignore[method-assign]
    multiprocessing.process.BaseProcess.start = lambda self: refuse("process", f"starts {self!r}")  # type: ignore[method-assign]

    from pipeline.train_step.step import TrainStep

    TrainStep.__call__ = lambda self, *_: refuse("training", "takes a training step")  # type: ignore[method-assign]
