"""A training that is interrupted again and again, by real signals to real processes, and its disk filled up.

    python interrupted_training.py PROJECT SIGNAL@STEP ...
    python interrupted_training.py PROJECT full-disk

Imports once and forks a process for every start of the training, as importing takes longer than training.
Each child writes its losses to PROJECT/losses/N.txt; what happened is printed as JSON.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pipeline.runtime.before_torch  # noqa: F401
from pipeline.config.load import load_settings
from pipeline.config.paths import checkpoint_folder
from pipeline.runtime.process import run_process
from pipeline.runtime.signals import run_command
from pipeline.tracking.tracker import NoTracker
from pipeline.training.trainer import train

OVERRIDES: dict[str, Any] = {
    "runtime.num_workers": 1,
    "train.steps": 60,
    "train.checkpoint_every": 7,
    "train.validate_every": 25,
    "train.batch_size": 3,
    "train.accumulation_steps": 2,
    "train.ema": 0.9,
    "train.gradient_clip": 1.0,
    "train.repeat_threshold": 0.5,
    "loss.pixel_budget": 1_000,
}


class LossFile(NoTracker):
    """Appends a line for every step, complete when another process reads it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if "train/loss" in metrics:
            os.write(self.descriptor, f"{step} {metrics['train/loss'].hex()}\n".encode())


def start(project: Path, number: int, folder: Path | None = None) -> int:
    """Starts a training in a process and a process group of its own; returns the process's id."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started us in the back
    losses = LossFile(project / "losses" / f"{number}.txt")
    settings = load_settings(project / "params.yaml", variant="sampled", overrides=OVERRIDES)
    code = run_command(lambda: train(settings, losses, folder=folder))
    os._exit(code)


def steps_in(path: Path) -> int:
    """The last step that a process has told of."""
    lines = path.read_text().split("\n") if path.exists() else []
    return int(lines[-2].split()[0]) if len(lines) > 1 else 0


def interrupt(project: Path, number: int, name: str, step: int) -> dict[str, object]:
    """Starts, sends the signal some time after `step`, and waits for the end."""
    process, path = start(project, number), project / "losses" / f"{number}.txt"
    while steps_in(path) < step:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return {"signal": name, "code": os.waitstatus_to_exitcode(status), "early": True}
        time.sleep(0.002)
    began = time.monotonic()
    if name == "SIGINT":  # Ctrl-C reaches the whole group
        os.killpg(process, signal.SIGINT)
    else:
        os.kill(process, signal.Signals[name])
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return {"signal": name, "code": code, "seconds": time.monotonic() - began}


def finish(project: Path, number: int, folder: Path | None = None) -> int:
    """Trains to the end; returns the exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(start(project, number, folder), 0)[1])


def fill_disk(folder: Path) -> None:
    """Leaves no byte free where `folder` lies."""
    try:
        with (folder / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def full_disk(project: Path) -> dict[str, object]:
    """Fills the disk after the first checkpoint of a step, then frees it and starts again."""
    folder = checkpoint_folder(load_settings(project / "params.yaml", variant="sampled"))
    process = start(project, 1)
    while steps_in(project / "losses" / "1.txt") <= OVERRIDES["train.checkpoint_every"]:
        time.sleep(0.002)
    fill_disk(folder)
    first = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    left = sorted(path.name for path in folder.iterdir())
    (folder / "filler").unlink()
    return {"codes": [first, finish(project, 2)], "left": left}


def main() -> None:
    """Do what the arguments say and print it."""
    where, what = Path(sys.argv[1]), sys.argv[2:]
    gc.freeze()  # the processes forked from here need not look through the modules
    if what == ["full-disk"]:
        print(json.dumps(full_disk(where)))
        return
    told = []
    for order, item in enumerate(what, start=1):
        wanted, _, at = item.partition("@")
        told.append(interrupt(where, order, wanted, int(at)))
    told.append({"signal": None, "code": finish(where, len(what) + 1)})
    told.append({"signal": None, "code": finish(where, 0, where / "whole")})
    print(json.dumps(told))


if __name__ == "__main__":
    run_process(main)
