"""Exported graphs in onnxruntime: time and peak memory of one picture, for few and for many classes.

    python -m benchmarks.export --threads 2 --save

`scan` is what `pipeline export --format onnx` writes: the class search inside the graph, in pieces. `argmax`
is the usual export of that network: logits of all classes upsampled to the picture, and ArgMax. Each graph
runs in a process of its own, where the fastest of several runs counts (none is begun after `PATIENCE`
seconds); memory is what the process's peak rose by after the file was loaded. A graph whose logits would not
fit into the memory that is free is not tried.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from benchmarks.record import describe_machine, free_bytes, save
from models.segmenter import Segmenter, SegmenterConfig, build_segmenter
from pipeline.export.formats import Shape, open_onnx, write_onnx
from pipeline.export.graph import SegmenterGraph
from pipeline.runtime.device import set_threads
from pipeline.runtime.signals import run_command

CLASSES = (19, 1_284, 10_000)
PATIENCE = 10.0
_FREE = 0.8  # of the memory that is free, which a graph may take
_COPIES = 3  # of full logits: onnxruntime transposes them for ArgMax


class DenseGraph(nn.Module):
    """Upsample the logits of all classes and take the largest."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self.segmenter = segmenter.eval().requires_grad_(False)

    confidence = False

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Map (N, 3, H, W) uint8 to class ids."""
        size = images.shape[-2:]
        features = self.segmenter.decoder(self.segmenter.backbone(images.float() / 255))
        logits = F.interpolate(
            self.segmenter.head.logits(features), size=size, mode="bilinear", align_corners=False
        )
        return (logits.argmax(dim=1).to(torch.int32) + 1,)


def graph_of(name: str, num_classes: int, backbone: str) -> nn.Module:
    """Build an untrained network with an embedding head, or with a softmax head for `argmax`."""
    torch.manual_seed(0)
    config = SegmenterConfig(
        num_classes=num_classes,
        backbone=backbone,
        decoder="deeplabv3plus_separable",
        head="softmax" if "softmax" in name or name == "argmax" else "embedding",
    )
    segmenter = build_segmenter(config)
    if name == "argmax":
        return DenseGraph(segmenter)
    return SegmenterGraph(segmenter, temperature=0.05, confidence="confidence" in name)


def measure(folder: Path, side: int, repeats: int, threads: int) -> tuple[float, float]:
    """Run a graph in a process of its own: seconds of the fastest run, and MiB."""
    command = [sys.executable, "-m", "benchmarks.export", "--run", str(folder), "--side", str(side)]
    command += ["--repeats", str(repeats), "--threads", str(threads)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(printed[-2]), float(printed[-1])


def run(folder: Path, side: int, repeats: int) -> None:
    """Print seconds and MiB."""
    call = open_onnx(folder)
    picture = np.random.default_rng(0).integers(0, 256, (1, 3, side, side), dtype=np.uint8)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_mib()
    seconds = float("inf")
    start = time.perf_counter()
    for _ in range(repeats):
        began = time.perf_counter()
        if began - start < PATIENCE:
            call(picture)
            seconds = min(seconds, time.perf_counter() - began)
    print(seconds, peak_mib() - before)


def peak_mib() -> float:
    """Return the most resident memory so far, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def main(
    backbone: Annotated[str, typer.Option(help="timm's name.")] = "mobilenetv2_100",
    side: Annotated[int, typer.Option(min=32, help="Of the square picture, pixels.")] = 512,
    classes: Annotated[list[int] | None, typer.Option(help="Default: 19, 1,284 and 10,000.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 3,
    threads: Annotated[int | None, typer.Option(help="Default: all.", min=1)] = None,
    keep: Annotated[bool, typer.Option("--save", help="Write the result to benchmarks/results/.")] = False,
    only: Annotated[Path | None, typer.Option("--run", hidden=True)] = None,
) -> None:
    """Measure exported graphs beside the usual export."""
    set_threads(threads or "auto")
    if only is not None:
        run(only, side, repeats)
        return
    lines = [f"{'graph':28}{'classes':>8}{'ms':>10}{'MiB':>10}{'export, s':>11}"]
    for number in classes or CLASSES:
        for name in ("scan", "scan, confidence", "scan, softmax", "argmax"):
            needed = 4 * _COPIES * number * side**2 if name == "argmax" else 0
            if needed > _FREE * free_bytes(torch.device("cpu")):
                lines.append(f"{name:28}{number:>8,}  does not fit")
                continue
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                write_onnx(graph_of(name, number, backbone), Shape(), Path(folder), {"names": []})  # type: ignore[arg-type]
                seconds = time.perf_counter() - began
                best, peak = measure(Path(folder), side, repeats, torch.get_num_threads())
            lines.append(f"{name:28}{number:>8,}{1000 * best:>10.0f}{peak:>10.0f}{seconds:>11.1f}")
            print(lines[-1], flush=True)
    if keep:
        command = " ".join(["python -m benchmarks.export", *sys.argv[1:]])
        title = f"{backbone}, deeplabv3plus_separable, one picture of {side} x {side}, onnxruntime on the CPU"
        print(
            f"saved {save('export', 'cpu', [describe_machine('cpu'), command, title, chr(10).join(lines)])}"
        )


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(run_command(app))
