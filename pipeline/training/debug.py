"""Look shortly into a training that goes wrong (`train.debug`). What that leaves behind is no result.

`one_batch` takes all steps on the first batch: a network that cannot learn it by heart has a defect.
`few_batches` ends after a few steps with all that a whole run does, validation and checkpoints included.
`profile` ends as soon, and leaves a trace of some steps to open in Perfetto or chrome://tracing.

Such a run leaves all that in a folder of its own, `checkpoints/VARIANT/debug`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from pipeline.config.paths import best_checkpoint_file, checkpoint_folder, results_folder
from pipeline.config.schema import Settings, TrainSettings
from pipeline.data.loading.batch import Batch
from pipeline.runtime.files import atomic_path

FEW_STEPS = 10
_SKIPPED, _TRACED = 4, 4  # the first steps allocate and warm up


def training_folder(settings: Settings) -> Path:
    """Return the folder of a training's checkpoints."""
    folder = checkpoint_folder(settings)
    return folder if settings.train.debug is None else folder / "debug"


def hand_over(settings: Settings, checkpoint: Path) -> Path:
    """Return the folder for a debug run's curves.

    DVC wants the stage's outputs at their place; those of before are in its cache. For DVC the checkpoint is
    copied to its place too.
    """
    if "DVC_STAGE" not in os.environ:
        return training_folder(settings)
    with atomic_path(best_checkpoint_file(settings)) as temporary:
        shutil.copyfile(checkpoint, temporary)
    return results_folder(settings)


def steps_to_take(train: TrainSettings) -> int:
    """Return `train.steps`, or a few where the debug mode ends early."""
    return min(train.steps, FEW_STEPS) if train.debug in ("few_batches", "profile") else train.steps


def images_to_validate(train: TrainSettings) -> int | None:
    """Return how many held-out images a validation takes; None for all."""
    return FEW_STEPS if train.debug in ("few_batches", "profile") else None


def batches_to_take(batches: Iterator[Batch], train: TrainSettings, remaining: int) -> Iterable[Batch]:
    """Return the batches, or with `one_batch` the first of them again and again, `remaining` times."""
    if train.debug == "one_batch" and remaining > 0:
        return itertools.repeat(next(batches), remaining)
    return batches


@contextlib.contextmanager
def traced(train: TrainSettings, path: Path) -> Iterator[Callable[[], None]]:
    """With `profile`, trace the steps in the block: call what it yields after each of them.

    Args:
        train: settings of the training.
        path: where the trace is written, in Chrome's JSON format.
    """
    if train.debug is None:
        yield lambda: None
        return
    text = f"train.debug is {train.debug}: what this run leaves in {path.parent} is no result"
    print(text, file=sys.stderr, flush=True)
    if train.debug != "profile":
        yield lambda: None
        return
    from torch.profiler import ProfilerActivity, profile, schedule

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)

    def write(profiled: profile) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        profiled.export_chrome_trace(str(path))
        print(f"trace of {_TRACED} steps: {path}", file=sys.stderr, flush=True)

    when = schedule(wait=_SKIPPED - 1, warmup=1, active=_TRACED, repeat=1)
    with profile(activities=activities, schedule=when, on_trace_ready=write) as profiled:
        yield profiled.step
