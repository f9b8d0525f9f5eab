"""Measure the loss and the prediction of other packages' networks: all logits beside ours, time and memory.

    python -m benchmarks.other_models --threads 2 --save

The networks are those of `examples`, with their usual widths and random weights. Each runs once, up to its
last layer. What is measured begins there, since all before is the same both ways:

    dense  the last layer, the network's own upsampling of all logits, `F.cross_entropy` or argmax
    ours   `exact_cross_entropy` or `predict_classes` of what goes into that layer

Training is forward and backward down to the gradients of weight, bias and the layer's input. The two take
turns, the fastest counts. Memory is the most that torch's allocator held at a time beyond what went in, by
torch's profiler. The two classifiers of LRASPP, whose logits are added, are taken as one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from benchmarks.record import describe_machine, save
from examples import smp_networks, torchvision_networks, transformers_networks
from examples.softmax_in_any_network import (
    Classifier,
    loss_of,
    neighbors,
    of_lraspp,
    prediction_of,
)
from models import features_before
from pipeline.memory.predict import allocated_cpu_bytes
from pipeline.runtime.device import MIB, set_threads
from pipeline.runtime.signals import run_command

TITLE = "".join(
    [
        f"{'network':38}{'':12}{'D':>6}",
        f"{'dense, ms':>10}{'ours, ms':>9}{'times':>8}{'dense, MiB':>12}{'ours, MiB':>11}",
    ]
)


@dataclass(frozen=True)
class Head:
    """What a network ends in: a convolution, what went into it, and how its logits are upsampled."""

    name: str
    layer: nn.Conv2d
    features: Tensor
    align_corners: bool = False

    def dense_logits(self, size: int) -> Tensor:
        """Compute (N, C, size, size) as the network does."""
        logits = self.layer(self.features)
        if logits.shape[2] == size:
            return logits
        return F.interpolate(logits, (size, size), mode="bilinear", align_corners=self.align_corners)

    def taken(self) -> Classifier:
        """Return what our loss and our prediction take."""
        features, layer = self.features, self.layer
        if layer.kernel_size != (1, 1):
            features = neighbors(features, layer)
        return Classifier(features, layer.weight.flatten(1), layer.bias)


def heads(classes: int, images: Tensor) -> Iterator[Head]:
    """Build one network after the other, and run it up to its last layer."""
    for name, make_smp in smp_networks.NETWORKS.items():
        network = make_smp("resnet18", encoder_weights=None, classes=classes)
        yield _head(f"smp {name}", network, network.segmentation_head[0], images, align_corners=True)
    for name, make in torchvision_networks.NETWORKS.items():
        network = make(weights=None, weights_backbone=None, num_classes=classes)
        if name.startswith("lraspp"):
            yield _one_layer(f"torchvision {name}", network, images)
        else:
            yield _head(f"torchvision {name}", network, network.classifier[-1], images)
    for name, build in transformers_networks.NETWORKS.items():
        network = build(classes)
        yield _head(f"transformers {name}", network, network.decode_head.classifier, images)


def _head(
    name: str, network: nn.Module, layer: nn.Conv2d, images: Tensor, *, align_corners: bool = False
) -> Head:
    with torch.no_grad():
        features = features_before(network.eval(), layer, images)
    return Head(name, layer, features.requires_grad_(), align_corners)


def _one_layer(name: str, network: nn.Module, images: Tensor) -> Head:
    with torch.no_grad():
        taken = of_lraspp(network.eval(), images)
    layer = nn.Conv2d(taken.weight.shape[1], len(taken.weight), 1)
    return Head(name, layer, taken.features.requires_grad_())


def calls(head: Head, target: Tensor) -> dict[str, dict[str, Callable[[], object]]]:
    """Return what is measured: ways of training and of predicting."""
    size = target.shape[-1]
    wanted = [head.features, *head.layer.parameters()]

    def train_dense() -> object:
        return torch.autograd.grad(F.cross_entropy(head.dense_logits(size), target), wanted)

    def train_ours() -> object:
        loss = loss_of(head.taken(), target, align_corners=head.align_corners)
        return torch.autograd.grad(loss, wanted)

    def predict_dense() -> object:
        with torch.no_grad():
            return head.dense_logits(size).argmax(1)

    def predict_ours() -> object:
        with torch.no_grad():
            return prediction_of(head.taken(), (size, size), align_corners=head.align_corners)

    return {
        "training": {"dense": train_dense, "ours": train_ours},
        "prediction": {"dense": predict_dense, "ours": predict_ours},
    }


def measure(ways: dict[str, Callable[[], object]], repeats: int) -> tuple[dict[str, float], dict[str, int]]:
    """Return the seconds and the extra bytes of each way."""
    held = {way: allocated_cpu_bytes(call) for way, call in ways.items()}  # and warms up
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for way, call in ways.items():
            began = time.perf_counter()
            call()
            seconds[way] = min(seconds[way], time.perf_counter() - began)
    return seconds, held


def row(head: Head, task: str, seconds: dict[str, float], held: dict[str, int]) -> str:
    """Format a line of the table."""
    return (
        f"{head.name:38}{task:12}{head.taken().features.shape[1]:>6}"
        f"{1000 * seconds['dense']:>10.0f}{1000 * seconds['ours']:>9.0f}"
        f"{seconds['dense'] / seconds['ours']:>8.1f}"
        f"{held['dense'] / MIB:>12.0f}{held['ours'] / MIB:>11.1f}"
    )


def main(
    classes: Annotated[int, typer.Option(min=2)] = 1_284,
    size: Annotated[int, typer.Option(min=32, help="Side of the image, a multiple of 32.")] = 256,
    batch: Annotated[int, typer.Option(min=1)] = 1,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls of each.")] = 3,
    threads: Annotated[int | None, typer.Option(help="Of the CPU; default: all.", min=1)] = None,
    keep: Annotated[bool, typer.Option("--save", help="Write the result to benchmarks/results/.")] = False,
) -> None:
    """Measure the heads of other packages' networks, dense and ours in turns."""
    set_threads(threads or "auto")
    torch.manual_seed(0)
    images, target = torch.rand(batch, 3, size, size), torch.randint(classes, (batch, size, size))
    lines = [TITLE]
    print(TITLE, flush=True)
    for head in heads(classes, images):
        for task, ways in calls(head, target).items():
            lines.append(row(head, task, *measure(ways, repeats)))
            print(lines[-1], flush=True)
    if keep:
        command = " ".join(["python -m benchmarks.other_models", *sys.argv[1:]])
        setting = f"{classes:,} classes, {batch} x {size} x {size} pixels, D: numbers a pixel that ours takes"
        sections = [describe_machine("cpu"), command, setting, "\n".join(lines)]
        print(f"saved {save('other_models', 'cpu', sections)}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(run_command(app))
