"""Prediction of one picture: time and peak memory, for few and for many classes, beside its peers.

    python -m benchmarks.prediction --threads 2 --save

`predictor` is the product's `Predictor` with either head: class map, confidence and the list of classes.
`ids` is its network and search without confidence. `argmax` is the usual way with the same network and a
softmax head: logits of all classes upsampled to the picture, then torch's argmax. `argmax, confidence` adds
the softmax probability of the class found, as `predictor` does. `smp` is the DeepLabV3Plus of
segmentation_models_pytorch with the same timm backbone, whose logits have the picture's size, and argmax.

Candidates take turns, and the fastest turn counts; one that has taken `PATIENCE` seconds takes no more.
`search` is the time from the network's output on. Memory is the most that torch's allocator held beyond the
model. A peer whose logits would not fit into the memory that is free is not tried.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from benchmarks.record import describe_machine, free_bytes, save
from models.heads import find_classes
from models.segmenter import Segmenter, SegmenterConfig, build_segmenter
from pipeline.data.labels.label_space import ClassEntry, LabelSpace
from pipeline.inference.predictor import Predictor
from pipeline.inference.windows import network_output
from pipeline.memory.predict import allocated_cpu_bytes
from pipeline.runtime.device import choose_device, set_threads
from pipeline.runtime.signals import run_command

try:
    import segmentation_models_pytorch as smp
except ImportError:
    smp = None

MIB = 2**20
CLASSES = (19, 1_284, 10_000)
BACKBONES = {"cpu": "mobilenetv2_100", "cuda": "resnet50"}
PATIENCE = 6.0
_FREE = 0.8  # of the memory that is free, which a peer may take


@dataclass
class Row:
    """One candidate at one number of classes."""

    name: str
    classes: int
    call: Callable[[], object] | None
    search: Callable[[], object] | None = None
    seconds: float = float("inf")
    search_seconds: float = float("inf")
    peak_bytes: int | None = None
    spent: float = 0.0


def candidates(pixels: np.ndarray, num_classes: int, backbone: str, device: torch.device) -> list[Row]:
    """List the rows to measure; a row without a call does not fit."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    size = (pixels.shape[0], pixels.shape[1])
    space = LabelSpace(
        tuple(ClassEntry(i, f"class {i}", "lvis", "f", {"lvis": (i,)}) for i in range(1, num_classes + 1))
    )
    found = []
    for head in ("embedding", "softmax"):
        config = SegmenterConfig(
            num_classes=num_classes,
            backbone=backbone,
            decoder="deeplabv3plus_separable",
            head=head,  # type: ignore[arg-type]
        )
        torch.manual_seed(0)
        segmenter = build_segmenter(config).to(device).eval()
        predictor = Predictor(segmenter, space, temperature=0.05)
        with torch.no_grad():
            output = network_output(segmenter, image)
        call, search = partial(predictor, pixels), partial(predictor.search, output, size)
        found.append(Row(f"predictor, {head}", num_classes, call, search))
        ids, search = partial(ids_alone, segmenter, image, size), partial(search_ids, segmenter, output, size)
        found.append(Row(f"ids, {head}", num_classes, ids, search))
    fitting = (
        _FREE * free_bytes(device) / (4 * num_classes * size[0] * size[1])
    )  # logits of the whole picture
    for name, whole, alone, copies in (
        ("argmax", dense_argmax, argmax_of, 1),
        ("argmax, confidence", dense_softmax, softmax_of, 2),
    ):
        call = partial(whole, segmenter, image, size) if copies < fitting else None
        found.append(Row(name, num_classes, call, partial(alone, segmenter, output, size)))
    if smp is not None:
        peer = smp.DeepLabV3Plus(f"tu-{backbone}", encoder_weights=None, classes=num_classes)
        call = partial(smp_argmax, peer.to(device).eval(), image) if fitting > 1 else None
        found.append(Row("smp", num_classes, call))
    return found


@torch.no_grad()
def ids_alone(segmenter: Segmenter, image: Tensor, size: tuple[int, int]) -> Tensor:
    return search_ids(segmenter, network_output(segmenter, image), size)


@torch.no_grad()
def search_ids(segmenter: Segmenter, output: Tensor, size: tuple[int, int]) -> Tensor:
    """Without confidence, as evaluation does."""
    return find_classes(segmenter.head, output, size)[0].cpu()


@torch.no_grad()
def dense_argmax(segmenter: Segmenter, image: Tensor, size: tuple[int, int]) -> Tensor:
    return argmax_of(segmenter, network_output(segmenter, image), size)


@torch.no_grad()
def argmax_of(segmenter: Segmenter, output: Tensor, size: tuple[int, int]) -> Tensor:
    logits = F.interpolate(segmenter.head.logits(output), size=size, mode="bilinear", align_corners=False)
    return logits.argmax(dim=1)[0].cpu()


@torch.no_grad()
def softmax_of(segmenter: Segmenter, output: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    logits = F.interpolate(segmenter.head.logits(output), size=size, mode="bilinear", align_corners=False)
    confidence, ids = logits.softmax(dim=1).max(dim=1)
    return ids[0].cpu(), confidence[0].cpu()


@torch.no_grad()
def dense_softmax(segmenter: Segmenter, image: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    return softmax_of(segmenter, network_output(segmenter, image), size)


@torch.no_grad()
def smp_argmax(model: torch.nn.Module, image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    device = next(model.parameters()).device
    padded = F.pad(image.to(device).float() / 255, (0, -width % 16, 0, -height % 16))
    return model(padded).argmax(dim=1)[0, :height, :width].cpu()


def measure(rows: list[Row], repeats: int, device: torch.device) -> None:
    """Fill in times and memory; all rows take turns."""
    running = [row for row in rows if row.call is not None]
    for row in running:
        assert row.call is not None
        began = time.perf_counter()
        row.peak_bytes = peak_bytes(row.call, device)  # warms up, too
        row.spent = row.seconds = time.perf_counter() - began
    for _ in range(repeats):
        for row in [row for row in running if row.spent < PATIENCE]:
            assert row.call is not None
            seconds = seconds_of(row.call, device)
            row.seconds, row.spent = min(row.seconds, seconds), row.spent + seconds
            if row.search is not None:
                seconds = seconds_of(row.search, device)
                row.search_seconds, row.spent = min(row.search_seconds, seconds), row.spent + seconds


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    gc.collect()
    if device.type != "cuda":
        return allocated_cpu_bytes(call)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    return torch.cuda.max_memory_allocated(device) - before


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def table(groups: list[list[Row]]) -> str:
    """Write a line a row; a ratio to `predictor, embedding` at as many classes above 1: ours is better."""
    lines = [
        f"{'':22}{'classes':>8}{'ms':>10}{'search, ms':>12}{'peak MiB':>10}{'time/ours':>11}"
        f"{'memory/ours':>13}"
    ]
    for rows in groups:
        ours = rows[0]
        for row in rows:
            if row.peak_bytes is None or ours.peak_bytes is None:
                lines.append(f"{row.name:22}{row.classes:>8,}  does not fit")
                continue
            search = "" if row.search_seconds == float("inf") else f"{1000 * row.search_seconds:.0f}"
            lines.append(
                f"{row.name:22}{row.classes:>8,}{1000 * row.seconds:>10.0f}{search:>12}"
                f"{row.peak_bytes / MIB:>10.0f}{row.seconds / ours.seconds:>11.2f}"
                f"{row.peak_bytes / ours.peak_bytes:>13.2f}"
            )
    return "\n".join(lines)


def main(
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    backbone: Annotated[
        str | None, typer.Option(help="timm's name; default: mobilenetv2_100 on a CPU, else resnet50.")
    ] = None,
    side: Annotated[int, typer.Option(min=32, help="Of the square picture, pixels.")] = 512,
    classes: Annotated[list[int] | None, typer.Option(help="Default: 19, 1,284 and 10,000.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed turns of each, at most.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Of the CPU; default: all.", min=1)] = None,
    keep: Annotated[bool, typer.Option("--save", help="Write the result to benchmarks/results/.")] = False,
) -> None:
    """Measure the prediction of one picture beside its peers."""
    used = choose_device(device)
    set_threads(threads or "auto")
    name = backbone or BACKBONES[used.type]
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    groups = []
    for number in classes or CLASSES:
        rows = candidates(pixels, number, name, used)
        measure(rows, repeats, used)
        groups.append(rows)
        for row in rows:
            row.call = None  # its network is not needed any more
        print(table(groups), end="\n\n", flush=True)
    if keep:
        command = " ".join(["python -m benchmarks.prediction", *sys.argv[1:]])
        title = f"{name}, deeplabv3plus_separable, one picture of {side} x {side}"
        sections = [describe_machine(used.type), command, title, table(groups)]
        print(f"saved {save('prediction', used.type, sections)}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(run_command(app))
