"""Measure how long a training waits for its data: a loop whose step takes a given time, and the real loader.

    python -m benchmarks.data_wait ROOT --step-seconds 0.4 --batch 10 --crop 512 --save

The loop sleeps while it would compute, as the CPU does while a GPU computes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.record import describe_machine, save
from pipeline.data.bootstrap.build import bootstrap
from pipeline.data.loading.dataset import SegmentationDataset
from pipeline.data.loading.loaders import train_loader
from pipeline.data.loading.transforms import TrainTransform
from pipeline.runtime.signals import run_command
from pipeline.training.state import DataWait, TrainState


def main(
    root: Annotated[Path, typer.Argument(help="Dataset in the official layout.", show_default=False)],
    step_seconds: Annotated[float, typer.Option(help="Time of a step.", min=0)] = 0.4,
    batch: Annotated[int, typer.Option(min=1)] = 10,
    crop: Annotated[int, typer.Option(min=32)] = 512,
    steps: Annotated[int, typer.Option(min=2)] = 60,
    workers: Annotated[int, typer.Option(help="Loader processes.", min=0)] = 2,
    keep: Annotated[bool, typer.Option("--save", help="Write the result to benchmarks/results/.")] = False,
) -> None:
    """Measure the share of the time that the loop spends waiting."""
    state = TrainState()
    with tempfile.TemporaryDirectory() as folder:
        bootstrap(root, Path(folder) / "bootstrapped")
        data = SegmentationDataset(Path(folder) / "bootstrapped", root, "train")
        batches = train_loader(
            data,
            TrainTransform(crop),
            batch_size=batch,
            num_steps=steps,
            seed=0,
            num_workers=workers,
        )
        for _ in DataWait(state).timed(batches):
            time.sleep(step_seconds)
    found = (
        f"{steps} steps of {step_seconds:.2f} s on {len(data)} images of {root.name}, {batch} crops of "
        f"{crop}, {workers} workers: {state.data_wait_share:.1%} of the time spent waiting for data"
    )
    print(found)
    if keep:
        command = " ".join(["python -m benchmarks.data_wait", *sys.argv[1:]])
        print(f"saved {save('data_wait', 'cpu', [describe_machine('cpu'), command, found])}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(run_command(app))
