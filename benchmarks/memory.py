"""Compare the predicted memory of a training step with what torch's CPU allocator hands out for one.

    python -m benchmarks.memory --crop 224 --batch 4 --save
    python -m benchmarks.memory --backbone mobilenetv2_100 --crop 256 --head softmax --head embedding \\
        --classes 19 --classes 1284 --classes 100000 --set model.decoder_channels=256 --save

The prediction runs the model under fake tensors; the count runs the same step for real under torch.profiler
and sums the allocator's events. Larger crops agree better: what operators allocate inside themselves, which a
prediction cannot see, has the size of their weights. What belongs to the classes themselves (their weights,
gradients and momentum) stands in a column of its own: flat is what is left. A step whose prediction exceeds
--most is not run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import pipeline.runtime.before_torch  # noqa: F401
from benchmarks.record import describe_machine, save
from pipeline.cli.memory import parse_budget, parse_changes
from pipeline.config.load import load_settings
from pipeline.config.schema import Settings
from pipeline.memory.predict import HEADS, count_cpu_bytes, predict_bytes, with_changes, with_head
from pipeline.runtime.device import MIB, set_threads
from pipeline.runtime.errors import UsageError
from pipeline.runtime.signals import run_command

BACKBONES = {"resnet50": 16, "convnext_tiny": 32, "vit_small_patch16_224": 16}  # with their output strides


def classifier_bytes(settings: Settings, num_classes: int) -> int:
    """Return the bytes of the classes' weights and biases, their gradients and the optimizer's state."""
    model, train = settings.model, settings.train
    numbers = model.embedding_dim if model.head == "embedding" else model.decoder_channels + 1
    copies = 4 if train.optimizer == "adamw" else 2 + (train.momentum > 0)
    return 4 * copies * numbers * num_classes


def main(
    crop: Annotated[int, typer.Option(min=32)] = 160,
    batch: Annotated[int, typer.Option(min=1)] = 2,
    classes: Annotated[list[int] | None, typer.Option(help="Default: 19 and 1,284.")] = None,
    backbone: Annotated[
        list[str] | None, typer.Option(help="Of timm, at output stride 16; default: three kinds.")
    ] = None,
    head: Annotated[list[str] | None, typer.Option(help="Default: embedding, softmax and dense.")] = None,
    most: Annotated[str, typer.Option(help="A larger prediction is not counted.")] = "12GiB",
    change: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE, as loss.work_memory_mib=8; repeat it.")
    ] = None,
    params: Annotated[Path, typer.Option(help="The settings file.")] = Path("params.yaml"),
    keep: Annotated[bool, typer.Option("--save", help="Write the table to benchmarks/results/.")] = False,
) -> None:
    """Compare prediction and count for some backbones and heads."""
    if unknown := set(head or ()) - set(HEADS):
        raise UsageError("unknown head", found=", ".join(unknown), allowed=", ".join(HEADS))
    settings = load_settings(params, overrides=parse_changes(change or []))
    set_threads(settings.runtime.threads)
    strides = BACKBONES if backbone is None else {name: BACKBONES.get(name, 16) for name in backbone}
    lines = [
        f"{'backbone':24}{'head':11}{'classes':>8}{'predicted MiB':>15}{'of the classes':>16}{'without':>10}"
        f"{'counted MiB':>13}{'error':>9}"
    ]
    print(lines[0])
    for name, output_stride in strides.items():
        for one in head or HEADS:
            for num_classes in classes or [19, 1_284]:
                changed = with_changes(
                    with_head(settings, one),
                    model={"backbone": name, "output_stride": output_stride},
                    train={"crop_size": crop, "batch_size": batch},
                )
                lines.append(f"{name:24}{one:11}" + _row(changed, num_classes, parse_budget(most)))
                print(lines[-1], flush=True)
    if keep:
        setting = f"{batch} crops of {crop} x {crop}, loss {settings.loss.name}, {' '.join(change or ())}"
        machine = describe_machine("cpu")
        print(f"saved {save('memory', 'cpu', [machine, setting.strip(', '), chr(10).join(lines)])}")


def _row(settings: Settings, num_classes: int, most: int) -> str:
    predicted, of_classes = predict_bytes(settings, num_classes), classifier_bytes(settings, num_classes)
    row = f"{num_classes:>8,}{predicted / MIB:>15,.1f}{of_classes / MIB:>16,.1f}"
    row += f"{(predicted - of_classes) / MIB:>10,.1f}"
    if predicted > most:
        return f"{row}{'not run':>13}"
    counted = count_cpu_bytes(settings, num_classes)
    return f"{row}{counted / MIB:>13,.1f}{predicted / counted - 1:>+9.2%}"


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(run_command(app))
