"""The price of `train.deterministic: true` on a CPU: a step whose result does not depend on the threads.

    python -m benchmarks.determinism --threads 2 --save

`usual` gives the network and the loss all threads, `deterministic` the network one and the compiled loss
all; `one thread` is the usual step on one. They take turns on the same random pictures; the fastest counts.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

import pipeline.runtime.before_torch  # noqa: F401
from benchmarks.record import describe_machine, save
from pipeline.config.load import load_settings
from pipeline.config.schema import Settings
from pipeline.data.loading.batch import Batch
from pipeline.runtime.device import set_threads
from pipeline.runtime.signals import run_command
from pipeline.train_step.model import build_model
from pipeline.train_step.precision import numerics
from pipeline.train_step.step import TrainStep

WAYS = {"usual": (False, None), "deterministic": (True, None), "one thread": (False, 1)}


def settings_of(params: Path, backbone: str, crop: int, batch: int, *, deterministic: bool) -> Settings:
    changes = {
        "model.backbone": backbone,
        "model.decoder_channels": 256,
        "train.crop_size": crop,
        "train.batch_size": batch,
        "train.deterministic": deterministic,
    }
    return load_settings(params, overrides=changes)


def make_step(settings: Settings, num_classes: int, threads: int) -> TrainStep:
    torch.manual_seed(0)
    segmenter = build_model(settings.model, num_classes).train()
    return TrainStep(segmenter, settings, accumulation_steps=1, threads=threads)


def main(
    backbone: Annotated[str, typer.Option(help="Of timm.")] = "mobilenetv2_100",
    crop: Annotated[int, typer.Option(min=32)] = 256,
    batch: Annotated[int, typer.Option(min=1)] = 2,
    classes: Annotated[int, typer.Option(min=2)] = 1_284,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    repeats: Annotated[int, typer.Option(min=1)] = 8,
    params: Annotated[Path, typer.Option(help="The settings file.")] = Path("params.yaml"),
    keep: Annotated[bool, typer.Option("--save", help="Write the table to benchmarks/results/.")] = False,
) -> None:
    """Measure the three ways side by side."""
    images = torch.randint(0, 256, (batch, 3, crop, crop), dtype=torch.uint8)
    target = torch.randint(0, classes, (batch, crop // 16, crop // 16)).float()[:, None]
    target = torch.nn.functional.interpolate(target, size=(crop, crop))[:, 0].long()
    one = Batch(images, target, tuple(range(batch)))
    made = {}
    for name, (deterministic, number) in WAYS.items():
        settings = settings_of(params, backbone, crop, batch, deterministic=deterministic)
        made[name] = settings, make_step(settings, classes, number or threads)
    seconds = dict.fromkeys(WAYS, float("inf"))
    for turn in range(repeats + 1):  # the first compiles
        for name, (settings, step) in made.items():
            deterministic, number = WAYS[name]
            set_threads(number or threads, deterministic=deterministic)
            with numerics(settings.train, torch.device("cpu")):
                began = time.perf_counter()
                step(one, turn)
                if turn:
                    seconds[name] = min(seconds[name], time.perf_counter() - began)
    least = seconds["usual"]
    lines = [f"{name:16}{value * 1e3:10,.0f} ms{value / least:8.2f}x" for name, value in seconds.items()]
    print("\n".join(lines))
    if keep:
        set_threads(threads)
        setting = f"{backbone}, {batch} crops of {crop}, {classes:,} classes, fastest of {repeats}"
        print(f"saved {save('determinism', 'cpu', [describe_machine('cpu'), setting, chr(10).join(lines)])}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(run_command(app))
