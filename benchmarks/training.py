"""Measure a full training step beside its peers: images per second and peak memory, by classes.

    python -m benchmarks.training --threads 2 --save
    python -m benchmarks.training --device cuda --crop 512 --batch 10 --precision bf16 --channels-last --save

Every candidate takes the step that `pipeline.training.trainer` takes (forward, loss, backward, SGD with
momentum), in turns, on one synthetic batch with every pixel labeled:

    embedding   our network with the embedding head and its exact loss
    softmax     our network with the usual classifier, its exact loss at flat memory
    dense       the same, from the logits of all pixels and classes at once
    distances   the network of `embedding`, from the distances of all pixels and classes at once
    smp         the DeepLabV3Plus of segmentation_models_pytorch, same timm backbone, plain cross-entropy

The decoder of smp is made of depthwise separable convolutions, and so is ours here unless --decoder says
otherwise. The rows that name a number of pixels pass no more than these to the loss (`loss.pixel_budget`).

The fastest of the steps counts. The column `loss` is the loss alone, forward and backward from the network's
output on. Memory is the most that torch's allocator held, the model, its gradients and momentum included. A
candidate whose logits are predicted not to fit is not tried.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.record import describe_machine, save
from benchmarks.targets import verdict
from benchmarks.training_candidates import Step, make_candidates
from pipeline.config.schema import DataSettings, Settings
from pipeline.memory.batch_size import USABLE, capacity_bytes
from pipeline.memory.predict import allocated_cpu_bytes, with_changes
from pipeline.runtime.device import choose_device, is_out_of_memory, set_threads
from pipeline.runtime.signals import run_command
from pipeline.train_step.precision import numerics

MIB = 2**20
CLASSES = (19, 1_284, 10_000)
BACKBONES = {"cpu": "mobilenetv2_100", "cuda": "resnet50"}


@dataclass
class Row:
    """One candidate at one number of classes."""

    name: str
    classes: int
    seconds: float = float("inf")
    loss_seconds: float | None = None
    peak_bytes: int | None = None


def measure(
    settings: Settings, budget: int | None, classes: int, device: torch.device, repeats: int
) -> list[Row]:
    """Measure every candidate in turns and return a row for each."""
    rows: list[Row] = []
    steps: list[tuple[Row, Step, Step | None]] = []
    for candidate in make_candidates(settings, budget, classes, device):
        row = Row(candidate.name, classes)
        rows.append(row)
        if candidate.bytes_needed > USABLE * capacity_bytes(device):
            continue
        row.peak_bytes = peak_bytes(candidate.make_step, device)
        if row.peak_bytes is not None:
            loss = candidate.make_loss() if candidate.make_loss else None
            steps.append((row, candidate.make_step(), loss))
    for turn in range(repeats + 1):
        for row, step, loss in steps:
            seconds, of_loss = seconds_of(step, device), seconds_of(loss, device) if loss else None
            if turn == 0:
                continue  # warms up
            row.seconds = min(row.seconds, seconds)
            if of_loss is not None:
                row.loss_seconds = min(row.loss_seconds or of_loss, of_loss)
    del steps
    gc.collect()
    return rows


def peak_bytes(make: Callable[[], Step], device: torch.device) -> int | None:
    """Measure the most memory held in two steps of a new model; None where they do not fit."""

    def two_steps() -> None:
        step = make()
        step()
        step()

    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # a process keeps what it freed, which this candidate may not fit
    try:
        if device.type != "cuda":
            return allocated_cpu_bytes(two_steps)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        two_steps()
        return torch.cuda.max_memory_allocated(device) - before
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def seconds_of(step: Step, device: torch.device) -> float:
    """Of one call, the device waited for."""
    began = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def table(groups: list[list[Row]], images: int) -> str:
    """Format a line per row: figures, and ratios to `embedding` at as many and at the fewest classes."""
    fewest = groups[0][0]
    lines = [
        f"{'':22}{'classes':>8}{'ms/step':>10}{'loss, ms':>10}{'images/s':>10}{'peak MiB':>10}"
        f"{'time/ours':>11}{'memory/ours':>13}{'time/fewest':>13}{'memory/fewest':>15}"
    ]
    for rows in groups:
        ours = rows[0]
        for row in rows:
            if row.peak_bytes is None or ours.peak_bytes is None or fewest.peak_bytes is None:
                lines.append(f"{row.name:22}{row.classes:>8,}  does not fit")
                continue
            loss = "" if row.loss_seconds is None else f"{1000 * row.loss_seconds:.0f}"
            lines.append(
                f"{row.name:22}{row.classes:>8,}{1000 * row.seconds:>10.0f}{loss:>10}"
                f"{images / row.seconds:>10.2f}{row.peak_bytes / MIB:>10.0f}"
                f"{row.seconds / ours.seconds:>11.2f}{row.peak_bytes / ours.peak_bytes:>13.3f}"
                f"{row.seconds / fewest.seconds:>13.3f}{row.peak_bytes / fewest.peak_bytes:>15.3f}"
            )
    return "\n".join(lines)


def verdicts(groups: list[list[Row]], device: str) -> Iterator[str]:
    """Format each target of a step as a line with the figures that decide it."""
    fewest = {row.name: row for row in groups[0] if row.peak_bytes is not None}
    ours = fewest.get("embedding")
    if ours is not None and "smp" in fewest:
        later, allowed = ours.seconds - fewest["smp"].seconds, ours.loss_seconds or 0.0
        yield (
            f"{ours.classes:,} classes: ours takes {1000 * later:+.0f} ms beside smp's, its loss alone "
            f"{1000 * allowed:.0f} ms"
        )
    for rows in groups[1:]:
        found = {row.name: row for row in rows if row.peak_bytes is not None}
        for name, row in found.items():
            few = fewest.get(name)
            if not name.startswith("embedding") or few is None:
                continue
            yield (
                f"{row.classes:,} classes: {name}: {_more(row.peak_bytes, few.peak_bytes)} memory and "
                f"{_more(row.seconds, few.seconds)} time beside {few.classes:,} classes; times faster: "
                + ", ".join(
                    f"{found[peer].seconds / row.seconds:.2f} than {peer}" for peer in found if peer != name
                )
            )
        if rows[0].classes == 1_284:
            yield from _judged(found, device)


def _judged(found: dict[str, Row], device: str) -> Iterator[str]:
    """Judge by `benchmarks.targets`, and say what a loss that took no time would give."""
    for peer in ("dense", "smp"):
        for head in ("embedding", "softmax"):
            if peer in found and head in found:
                faster = found[peer].seconds / found[head].seconds
                yield verdict(f"step of {head} beside {peer}", faster, "1,284 classes", device)
        if peer in found and "network alone" in found:
            most = found[peer].seconds / found["network alone"].seconds
            yield f"1,284 classes: without any loss a step would be {most:.2f} times faster than {peer}"


def _more(value: float | None, than: float | None) -> str:
    assert value is not None
    assert than is not None
    return f"{value / than - 1:+.1%}"


def main(
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    backbone: Annotated[
        str | None, typer.Option(help="timm's name; default: mobilenetv2_100 on a CPU, else resnet50.")
    ] = None,
    decoder: Annotated[
        str, typer.Option(help="Ours; smp's ASPP is as separable.")
    ] = "deeplabv3plus_separable",
    crop: Annotated[int, typer.Option(min=32)] = 256,
    batch: Annotated[int, typer.Option(min=1)] = 2,
    classes: Annotated[list[int] | None, typer.Option(help="Default: 19, 1,284 and 10,000.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed steps of each.")] = 3,
    precision: Annotated[str, typer.Option(help="fp32, bf16, or fp16 on a GPU.")] = "fp32",
    channels_last: Annotated[bool, typer.Option("--channels-last")] = False,
    pixel_budget: Annotated[
        int, typer.Option(help="loss.pixel_budget of further rows; 0: none.", min=0)
    ] = 16_384,
    threads: Annotated[int | None, typer.Option(help="Of the CPU; default: all.", min=1)] = None,
    keep: Annotated[bool, typer.Option("--save", help="Write the result to benchmarks/results/.")] = False,
) -> None:
    """Measure a training step beside its peers."""
    used = choose_device(device)
    settings = Settings(project=Path.cwd(), data=DataSettings(root=Path.cwd()))
    changes: dict[str, object] = {"batch_size": batch, "crop_size": crop, "precision": precision}
    changes["channels_last"] = channels_last
    model = {"backbone": backbone or BACKBONES[used.type], "decoder": decoder, "decoder_channels": 256}
    settings = with_changes(settings, model=model, train=changes)
    settings = Settings.model_validate(settings.model_dump())
    set_threads(threads or "auto")
    groups: list[list[Row]] = []
    with numerics(settings.train, used):
        for number in classes or list(CLASSES):
            groups.append(measure(settings, pixel_budget or None, number, used, repeats))
            print(table(groups, batch), end="\n\n", flush=True)
    title = f"{model['backbone']}, {decoder}, {batch} crops of {crop} x {crop}, {precision}"
    sections = [title, table(groups, batch), "\n".join(verdicts(groups, used.type))]
    print(sections[-1])
    if keep:
        command = " ".join(["python -m benchmarks.training", *sys.argv[1:]])
        print(f"saved {save('training', used.type, [describe_machine(used.type), command, *sections])}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(run_command(app))
