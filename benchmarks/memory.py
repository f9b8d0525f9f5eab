"""Compare the predicted memory of a training step with what torch's CPU allocator hands out for one.

    python -m benchmarks.memory --crop 224 --batch 4 --save

The prediction runs the model under fake tensors; the count runs the same step for real under torch.profiler
and sums the allocator's events. Larger crops agree better: what operators allocate inside themselves, which a
prediction cannot see, has the size of their weights.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.record import describe_machine, save
from pipeline.config.load import load_settings
from pipeline.memory.predict import HEADS, count_cpu_bytes, predict_bytes, with_changes
from pipeline.runtime.device import MIB
from pipeline.runtime.signals import run_command

BACKBONES = {"resnet50": 16, "convnext_tiny": 32, "vit_small_patch16_224": 16}  # with their output strides


def main(
    crop: Annotated[int, typer.Option(min=32)] = 160,
    batch: Annotated[int, typer.Option(min=1)] = 2,
    classes: Annotated[list[int] | None, typer.Option(help="Default: 19 and 1,284.")] = None,
    params: Annotated[Path, typer.Option(help="The settings file.")] = Path("params.yaml"),
    keep: Annotated[bool, typer.Option("--save", help="Write the table to benchmarks/results/.")] = False,
) -> None:
    """Compare prediction and count for three kinds of backbone and both heads."""
    settings = load_settings(params)
    lines = [f"{'backbone':24}{'head':11}{'classes':>8}{'predicted MiB':>15}{'counted MiB':>13}{'error':>9}"]
    print(lines[0])
    for backbone, output_stride in BACKBONES.items():
        for head in HEADS:
            for num_classes in classes or [19, 1_284]:
                changed = with_changes(
                    settings,
                    model={"backbone": backbone, "output_stride": output_stride, "head": head},
                    train={"crop_size": crop, "batch_size": batch},
                )
                predicted = predict_bytes(changed, num_classes)
                counted = count_cpu_bytes(changed, num_classes)
                lines.append(
                    f"{backbone:24}{head:11}{num_classes:>8,}{predicted / MIB:>15.1f}{counted / MIB:>13.1f}"
                    f"{predicted / counted - 1:>+9.2%}"
                )
                print(lines[-1], flush=True)
    if keep:
        setting = f"{batch} crops of {crop} x {crop}, loss {settings.loss.name}"
        machine = describe_machine("cpu")
        print(f"saved {save('memory', 'cpu', [machine, setting, chr(10).join(lines)])}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(run_command(app))
