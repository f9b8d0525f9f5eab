"""A process that has everything imported and bootstraps in forked children, each the life of one command.

    python bootstrap_server.py ROOT OUT

For each line on stdin, a number k, it forks a child that bootstraps ROOT into OUT and kills itself at its
k-th change of a name in the file system, 0 for never; with -k it stops itself there (SIGSTOP). It prints the
child's pid, then its status.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import JpegImagePlugin

from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.bootstrap.options import BootstrapOptions
from pipeline.runtime.signals import run_command

assert JpegImagePlugin


def signal_at(number: int) -> None:
    """Kills this process, or stops it, just before its number-th renaming, removal or making of a folder."""
    left, what = [abs(number)], signal.SIGKILL if number > 0 else signal.SIGSTOP

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), what)
            return original(*arguments, **options)

        return call

    for name in ("rename", "replace", "unlink", "mkdir"):
        setattr(Path, name, counted(getattr(Path, name)))
        if name != "mkdir":
            setattr(os, name, counted(getattr(os, name)))


def main() -> None:
    os.fsync = lambda descriptor: None  # a kill loses nothing that was written; only a power cut would
    root, out = Path(sys.argv[1]), Path(sys.argv[2])
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            if int(line):
                signal_at(int(line))
            os._exit(run_command(lambda: bootstrap(root, out, BootstrapOptions(images_per_shard=6))))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
