"""Measure a training step and a search, built from models/ alone: time, memory, the network's part of it.

    python -m benchmarks.step --device cuda --crop 512 --batch 10
    python -m benchmarks.step --classes 19 --classes 100000 --repeats 0

`network alone` is the same step with the mean of the output in place of a loss: what no loss can be faster
than. `products, exponentials` is what the classifier's exact loss cannot do without: the three products of
low-resolution features, classes and gradients, and one exponential a pixel and class (CPU only). `dense`
forms all logits. `search` is the nearest class of every pixel from the network's output on,
`search (tiled)` the same in plain torch. Candidates take turns, the fastest turn counts. Memory is the most
held in two steps of a new model, by torch's own count, and is measured apart. Needs torch, timm and typer;
`benchmarks.training` measures the step of the pipeline beside other packages.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, cast

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from benchmarks.loss_measure import allocated_cpu_bytes, available_bytes
from benchmarks.record import describe_machine, save
from benchmarks.targets import verdict
from models.compiled import reason_against_numba
from models.implementation import Name, forced
from models.losses import exact_cross_entropy
from models.nearest import predict_classes
from models.segmenter import Segmenter, SegmenterConfig, build_segmenter
from models.upsampling import full_resolution_rows

MIB = 2**20
CLASSES = (19, 1_284, 10_000)
BACKBONES = {"cpu": "mobilenetv2_100", "cuda": "resnet50"}
NETWORK, DENSE, LEAST = "network alone", "dense", "products, exponentials"
_COPIES = 3  # of all logits, which `dense` holds at once


@dataclass(frozen=True)
class Setup:
    """What every candidate is measured with."""

    device: str
    backbone: str
    crop: int
    batch: int
    precision: str


@dataclass
class Row:
    """One candidate at one number of classes."""

    name: str
    classes: int
    seconds: float = float("inf")
    peak_bytes: int | None = None
    table_bytes: int = 0  # class table, its gradient and its momentum
    left_out: str = ""


@dataclass
class Group:
    """All candidates at one number of classes."""

    classes: int
    rows: dict[str, Row] = field(default_factory=dict)

    def ratio(self, slower: str, faster: str) -> float | None:
        """Return how many times faster one is; None where one of them was not measured."""
        rows = self.rows.get(slower), self.rows.get(faster)
        if any(row is None or row.seconds == float("inf") for row in rows):
            return None
        return self.rows[slower].seconds / self.rows[faster].seconds


def build(setup: Setup, head: str, classes: int) -> Segmenter:
    config = SegmenterConfig(
        num_classes=classes,
        backbone=setup.backbone,
        decoder="deeplabv3plus_separable",
        head=cast("Literal['embedding', 'softmax']", head),
    )
    torch.manual_seed(0)
    return build_segmenter(config).to(setup.device)


def make_batch(setup: Setup, classes: int) -> tuple[Tensor, Tensor]:
    """Make images of noise and a target, every pixel labeled."""
    generator = torch.Generator().manual_seed(0)
    size = (setup.batch, setup.crop, setup.crop)
    images = torch.rand(size[0], 3, *size[1:], generator=generator)
    return images.to(setup.device), torch.randint(classes, size, generator=generator).to(setup.device)


def loss_of(name: str, segmenter: Segmenter, output: Tensor, target: Tensor) -> Tensor:
    head = segmenter.head
    if name == NETWORK:
        return output.float().square().mean()
    if name == DENSE:
        logits = cast("Any", head).logits(output)
        return F.cross_entropy(full_resolution_rows(logits, target.shape[1:]).float(), target.flatten())
    options: dict[str, Any] = {"temperature": 0.1} if name == "embedding" else {"similarity": "dot"}
    if name == "softmax":
        options |= {"temperature": 1.0, "bias": head.bias}
    return exact_cross_entropy(output, head.class_embeddings, target, **options)


def make_step(setup: Setup, name: str, classes: int) -> Callable[[], None]:
    segmenter = build(setup, "softmax" if name in ("softmax", DENSE) else "embedding", classes).train()
    optimizer = torch.optim.SGD(segmenter.parameters(), lr=0.01, momentum=0.9)
    images, target = make_batch(setup, classes)
    half = setup.precision == "bf16"

    def step() -> None:
        with torch.autocast(setup.device, dtype=torch.bfloat16, enabled=half):
            loss = loss_of(name, segmenter, segmenter(images), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def make_least_loss(setup: Setup, classes: int) -> Callable[[], None]:
    """Make the arithmetic of the classifier's loss, on (N h w, D + 1) features with a column of ones."""
    from benchmarks.loss_bound import exponentials_alone

    corners, dim = setup.batch * (setup.crop // 4) ** 2, 257
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(corners, dim, generator=generator)
    weight = torch.randn(classes, dim, generator=generator)

    def least() -> None:
        logits = features @ weight.T
        logits @ weight
        logits.T @ features
        exponentials_alone(setup.batch * setup.crop**2, classes)

    return least


def make_search(setup: Setup, head: str, classes: int, implementation: Name | None) -> Callable[[], None]:
    """Make the search of one image of the crop's size, of random output."""
    own = build(setup, head, classes).head
    table, bias = own.class_embeddings.detach(), None if own.bias is None else own.bias.detach()
    generator, side = torch.Generator().manual_seed(0), -(-setup.crop // 4)
    output = F.normalize(torch.randn(1, table.shape[1], side, side, generator=generator)).to(setup.device)
    similarity: Literal["distance", "dot"] = "distance" if head == "embedding" else "dot"

    def search() -> None:
        predict_classes(output, table, (setup.crop, setup.crop), bias=bias, similarity=similarity)

    def search_by() -> None:
        with forced(cast("Name", implementation)):
            search()

    return search if implementation is None else search_by


def peak_bytes(setup: Setup, name: str, classes: int) -> int:
    """Measure the most bytes held in two steps of a new model."""
    if setup.device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        two_steps(setup, name, classes)
        return torch.cuda.max_memory_allocated() - before
    return allocated_cpu_bytes(lambda: two_steps(setup, name, classes))


def two_steps(setup: Setup, name: str, classes: int) -> None:
    step = make_step(setup, name, classes)
    step()
    step()


def measure(setup: Setup, classes: int, repeats: int, with_memory: bool) -> Group:
    """Measure all candidates at one number of classes."""
    group, calls = Group(classes), []
    logits = 4 * setup.batch * setup.crop**2 * classes
    for name in (NETWORK, "embedding", "softmax", DENSE):
        row = group.rows[name] = Row(name, classes)
        if name == DENSE and _COPIES * logits > 0.7 * available_bytes(setup.device):
            row.left_out = f"does not fit (all logits are {logits / 2**30:,.1f} GiB)"
            continue
        if with_memory:
            row.peak_bytes = peak_bytes(setup, name, classes)
            row.table_bytes = 3 * 4 * classes * (16 if name in (NETWORK, "embedding") else 257)
        if repeats:
            calls.append((row, make_step(setup, name, classes)))
    if repeats and setup.device == "cpu" and reason_against_numba() is None:
        row = group.rows[LEAST] = Row(LEAST, classes)
        calls.append((row, make_least_loss(setup, classes)))
    for head in ("embedding", "softmax") if repeats else ():
        for implementation in cast("tuple[Name | None, ...]", (None, "tiled")):
            name = f"search of {head}" + (f" ({implementation})" if implementation else "")
            row = group.rows[name] = Row(name, classes)
            calls.append((row, make_search(setup, head, classes, implementation)))
    for turn in range(repeats + 1 if repeats else 0):
        for row, call in calls:
            began = time.perf_counter()
            call()
            if setup.device == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first one warms up
                row.seconds = min(row.seconds, time.perf_counter() - began)
    return group


def table(groups: list[Group]) -> str:
    lines = [f"{'':30}{'classes':>9}{'ms':>11}{'over network':>14}{'peak MiB':>10}{'of it the table':>17}"]
    for group in groups:
        for row in group.rows.values():
            if row.left_out:
                lines.append(f"{row.name:30}{row.classes:>9,}  {row.left_out}")
                continue
            timed = row.seconds < float("inf")
            is_step = row.name != LEAST and not row.name.startswith("search")
            over = group.ratio(row.name, NETWORK) if is_step else None
            held = row.peak_bytes is not None
            lines.append(
                f"{row.name:30}{row.classes:>9,}{1e3 * row.seconds if timed else 0:>11,.1f}"
                f"{'' if over is None else f'{over:.2f}':>14}"
                f"{f'{(row.peak_bytes or 0) / MIB:,.1f}' if held else '':>10}"
                f"{f'{row.table_bytes / MIB:,.1f}' if held else '':>17}"
            )
    return "\n".join(lines)


def verdicts(groups: list[Group], device: str) -> Iterator[str]:
    """Judge what was measured by `benchmarks.targets`."""
    for group in groups:
        where = f"{group.classes:,} classes"
        for head in ("embedding", "softmax"):
            faster = group.ratio(DENSE, head)
            if faster is not None and group.classes == 1_284:
                yield verdict(f"step of {head} beside dense", faster, where, device)
            found = group.ratio(f"search of {head} (tiled)", f"search of {head}")
            if found is not None and group.classes == 1_284:
                yield verdict(f"search of {head} beside tiled", found, where, device)
        most = group.ratio(DENSE, NETWORK)
        if most is not None:
            yield f"{where}: a loss that took no time would make a step {most:.2f} times faster than dense"
        if most is not None and LEAST in group.rows:
            seconds = group.rows[NETWORK].seconds + group.rows[LEAST].seconds
            least = group.rows[DENSE].seconds / seconds
            yield f"{where}: one of its products and exponentials alone, for softmax, {least:.2f} times"
    fewest = groups[0]
    for group in groups[1:]:
        for head in ("embedding", "softmax"):
            few, many = fewest.rows[head], group.rows[head]
            if few.peak_bytes and many.peak_bytes:
                grown = (many.peak_bytes - many.table_bytes) / (few.peak_bytes - few.table_bytes)
                name = f"memory of {head} beside the fewest classes"
                where = f"{group.classes:,} beside {fewest.classes:,} classes"
                yield verdict(name, grown, where, device)


def keep_freed_memory() -> None:
    """Let GNU's C library keep what is freed, as a training of the pipeline does.

    Handed back, large buffers cost a page fault a page at every step: `dense` then takes twice as long.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(-3, 2**31 - 1)  # M_MMAP_THRESHOLD
        library.mallopt(-1, -1)  # M_TRIM_THRESHOLD


def main(
    device: Annotated[str, typer.Option(help="cpu or cuda; default: a GPU where there is one.")] = "",
    backbone: Annotated[
        str, typer.Option(help="timm's name; default: mobilenetv2_100 on a CPU, else resnet50.")
    ] = "",
    crop: Annotated[int, typer.Option(min=32)] = 256,
    batch: Annotated[int, typer.Option(min=1)] = 2,
    classes: Annotated[list[int] | None, typer.Option(help="Default: 19, 1,284 and 10,000.")] = None,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    repeats: Annotated[int, typer.Option(min=0, help="Timed turns of each; 0: memory only.")] = 3,
    memory: Annotated[bool, typer.Option(help="Count memory too.")] = True,
    threads: Annotated[int, typer.Option(min=0, help="Of the CPU; 0: torch's choice.")] = 0,
    keep: Annotated[bool, typer.Option("--save", help="Write the result to benchmarks/results/.")] = False,
) -> None:
    """Measure a training step and a search beside the dense way."""
    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()
    used = device or ("cuda" if torch.cuda.is_available() else "cpu")
    setup = Setup(used, backbone or BACKBONES[used], crop, batch, precision)
    groups: list[Group] = []
    print(describe_machine(used), flush=True)
    for number in classes or CLASSES:
        groups.append(measure(setup, number, repeats, memory))
        print("\n" + table(groups[-1:]), flush=True)
    sections = [str(setup), table(groups), "\n".join(verdicts(groups, used))]
    print("\n" + sections[-1], flush=True)
    if keep:
        command = " ".join(["python -m benchmarks.step", *sys.argv[1:]])
        print(f"saved {save('step', used, [describe_machine(used), command, *sections])}")


if __name__ == "__main__":
    typer.run(main)
