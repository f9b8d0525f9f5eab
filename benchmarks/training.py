"""A full training step: images a second and peak memory, for few and for many classes, beside its peers.

    python -m benchmarks.training --crop 128 --batch 2 --threads 2 --save
    python -m benchmarks.training --device cuda --crop 512 --batch 10 --precision bf16 --channels-last --save
    python -m benchmarks.training --root DATASET --step-seconds 0.4 --batch 10 --crop 512

Every candidate takes the step that `pipeline.training` takes (forward, loss, backward, SGD with momentum), in
turns, on one synthetic batch with every pixel labelled: `embedding` is ours with the exact loss, `softmax`
our network with the usual head, `smp` the DeepLabV3Plus of segmentation_models_pytorch with the same timm
backbone and plain cross-entropy, where installed (`uv pip install segmentation-models-pytorch`). Its decoder
is made of depthwise separable convolutions; ours, as the paper's, of dense ones by default, and in the rows
`separable` of such ones too; `smp dense` has a dense ASPP. The fastest of the steps counts. Memory is the
most that torch's allocator held, the model, its gradients and momentum included.

With --root instead: how long a loop whose step takes --step-seconds waits for its batches. The loop sleeps
meanwhile, as the CPU does while a GPU computes.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer

from benchmarks.record import describe_machine, save
from pipeline.arithmetic import arithmetic, autocast
from pipeline.data.bootstrap import bootstrap
from pipeline.data.dataset import SegmentationDataset
from pipeline.data.loaders import Batch, train_loader
from pipeline.data.transforms import TrainTransform
from pipeline.data_wait import DataWait
from pipeline.memory import allocated_cpu_bytes, with_changes
from pipeline.network import build_network
from pipeline.runtime import choose_device, is_out_of_memory, run, set_threads
from pipeline.settings import DataSettings, Settings
from pipeline.train_state import TrainState
from pipeline.train_step import Optimisation

MIB = 2**20
CLASSES = (19, 1_284, 10_000)
Step = Callable[[], object]


def candidates(settings: Settings) -> dict[str, Callable[[int, torch.device], Step]]:
    """By name, what makes a step from the number of classes and the device."""

    def ours(head: str, **model: object) -> Callable[[int, torch.device], Step]:
        changed = with_changes(settings, model={"head": head, **model})
        return lambda classes, device: own_step(changed, classes, device)

    cheaper = "deeplabv3plus_separable"
    found = {
        "embedding": ours("embedding"),
        "softmax": ours("softmax"),
        "embedding separable": ours("embedding", decoder=cheaper),
        "softmax separable": ours("softmax", decoder=cheaper),
    }
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        print("smp is left out: uv pip install segmentation-models-pytorch", file=sys.stderr)
        return found

    def peer(separable: bool) -> Callable[[int, torch.device], Step]:
        return lambda classes, device: smp_step(smp, settings, classes, device, separable=separable)

    return {**found, "smp": peer(True), "smp dense": peer(False)}


def synthetic(settings: Settings, classes: int) -> Batch:
    """A batch of noise, every pixel labelled."""
    options, generator = settings.train, torch.Generator().manual_seed(0)
    size = (options.images_per_step, options.crop_size, options.crop_size)
    images = torch.randint(256, (size[0], 3, *size[1:]), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.randint(classes, size, generator=generator), tuple(range(size[0])))


def own_step(settings: Settings, classes: int, device: torch.device) -> Step:
    """The very step of the training."""
    segmenter = build_network(settings.model, classes).to(device).train()
    optimisation = Optimisation(segmenter, settings, accumulate=settings.train.accumulate)
    batch = synthetic(settings, classes)
    return lambda: optimisation.step(batch, 0)


def smp_step(smp: Any, settings: Settings, classes: int, device: torch.device, *, separable: bool) -> Step:
    """The peer's network with full-resolution logits; `separable`: the 3x3 convolutions of its ASPP."""
    options, model = settings.train, settings.model
    network = smp.DeepLabV3Plus(
        f"tu-{model.backbone}",
        encoder_weights=None,
        encoder_output_stride=model.output_stride,
        decoder_channels=model.decoder_channels,
        decoder_aspp_separable=separable,
        classes=classes,
    )
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    network = network.to(device, memory_format=layout).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=options.learning_rate, momentum=options.momentum)
    batch = synthetic(settings, classes)

    def step() -> None:
        images = (batch.images.to(device).float() / 255).contiguous(memory_format=layout)
        target = batch.target.to(device)
        with autocast(options.precision, device.type):
            loss = F.cross_entropy(network(images), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


@dataclass
class Row:
    """One candidate at one number of classes."""

    name: str
    classes: int
    seconds: float = float("inf")
    peak_bytes: int | None = None


def measure(settings: Settings, counts: list[int], device: torch.device, repeats: int) -> Iterator[list[Row]]:
    """For each number of classes, a row for each candidate; all of them take turns."""
    for classes in counts:
        rows, steps = [], []
        for name, make in candidates(settings).items():
            row = Row(name, classes)
            rows.append(row)
            row.peak_bytes = peak_bytes(make, classes, device)
            if row.peak_bytes is not None:
                steps.append((row, make(classes, device)))
        for _ in range(repeats + 1):  # the first warms up
            for row, step in steps:
                row.seconds = min(row.seconds, seconds_of(step, device))
        del steps
        gc.collect()
        yield rows


def peak_bytes(make: Callable[[int, torch.device], Step], classes: int, device: torch.device) -> int | None:
    """The most that was held in two steps of a new model; None where they do not fit."""

    def two_steps() -> None:
        step = make(classes, device)
        step()
        step()

    gc.collect()
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
    """A line a row: its figures, and relative to `embedding` at as many and at the fewest classes."""
    reference = groups[0][0]
    lines = [
        f"{'':19}{'classes':>8}{'ms/step':>10}{'images/s':>10}{'peak MiB':>10}"
        f"{'time/ours':>11}{'memory/ours':>13}{'time/fewest':>13}{'memory/fewest':>15}"
    ]
    for rows in groups:
        ours = rows[0]
        for row in rows:
            if row.peak_bytes is None or ours.peak_bytes is None or reference.peak_bytes is None:
                lines.append(f"{row.name:19}{row.classes:>8,}  does not fit")
                continue
            lines.append(
                f"{row.name:19}{row.classes:>8,}{1000 * row.seconds:>10.0f}{images / row.seconds:>10.2f}"
                f"{row.peak_bytes / MIB:>10.0f}{row.seconds / ours.seconds:>11.2f}"
                f"{row.peak_bytes / ours.peak_bytes:>13.3f}{row.seconds / reference.seconds:>13.3f}"
                f"{row.peak_bytes / reference.peak_bytes:>15.3f}"
            )
    return "\n".join(lines)


def data_wait(settings: Settings, root: Path, *, steps: int, step_seconds: float, workers: int) -> str:
    """How much of a loop over `root` is waiting, if a step takes `step_seconds`."""
    options, state = settings.train, TrainState()
    with tempfile.TemporaryDirectory() as folder:
        bootstrap(root, Path(folder) / "bootstrapped", holdout_fraction=0.1)
        data = SegmentationDataset(Path(folder) / "bootstrapped", root, "train")
        batches = train_loader(
            data,
            TrainTransform(options.crop_size),
            batch_size=options.images_per_step,
            num_steps=steps,
            seed=0,
            num_workers=workers,
        )
        for _ in DataWait(state).timed(batches):
            time.sleep(step_seconds)
    return (
        f"{steps} steps of {step_seconds:.2f} s on {len(data)} images of {root.name}, "
        f"{options.images_per_step} crops of {options.crop_size}, {workers} workers: "
        f"{state.data_wait_share:.1%} of the time spent waiting for data"
    )


def main(
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    backbone: Annotated[str, typer.Option(help="Name of a timm model.")] = "resnet50",
    crop: Annotated[int, typer.Option(min=32)] = 128,
    batch: Annotated[int, typer.Option(min=1)] = 2,
    classes: Annotated[list[int] | None, typer.Option(help="Default: 19, 1,284 and 10,000.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed steps of each.")] = 5,
    precision: Annotated[str, typer.Option(help="fp32, bf16, or fp16 on a GPU.")] = "fp32",
    channels_last: Annotated[bool, typer.Option("--channels-last")] = False,
    pixel_budget: Annotated[int | None, typer.Option(help="loss.pixel_budget of ours.", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="Of the CPU; default: all.", min=1)] = None,
    root: Annotated[Path | None, typer.Option(help="Dataset to measure the waiting for data on.")] = None,
    step_seconds: Annotated[float, typer.Option(help="Time of a step, with --root.", min=0)] = 0.4,
    steps: Annotated[int, typer.Option(help="Steps, with --root.", min=2)] = 60,
    workers: Annotated[int, typer.Option(help="Loader processes, with --root.", min=0)] = 2,
    keep: Annotated[bool, typer.Option("--save", help="Write the result to benchmarks/results/.")] = False,
) -> None:
    """Measure steps, or with --root the waiting for data."""
    settings = Settings(project=Path.cwd(), data=DataSettings(root=root or Path.cwd()))
    changes: dict[str, object] = {"batch_size": batch, "crop_size": crop, "precision": precision}
    changes["channels_last"] = channels_last
    settings = with_changes(settings, model={"backbone": backbone}, train=changes)
    loss = settings.loss.model_copy(update={"pixel_budget": pixel_budget})
    settings = Settings.model_validate(settings.model_copy(update={"loss": loss}).model_dump())
    used = choose_device(device)
    set_threads(threads or "auto")
    if root is not None:
        sections = [data_wait(settings, root, steps=steps, step_seconds=step_seconds, workers=workers)]
        print(sections[0])
    else:
        groups = []
        with arithmetic(settings.train, used):
            for rows in measure(settings, classes or list(CLASSES), used, repeats):
                groups.append(rows)
                print(table(groups, batch), end="\n\n", flush=True)
        sections = [f"{backbone}, {batch} crops of {crop} x {crop}, {precision}", table(groups, batch)]
    if keep:
        command = " ".join(["python -m benchmarks.training", *sys.argv[1:]])
        print(f"saved {save('training', used.type, [describe_machine(used.type), command, *sections])}")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    sys.exit(run(app))
