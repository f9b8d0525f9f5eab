"""Predict the peak memory of one training step without a GPU; measure it where there is one.

Predicted: the real model, backward pass and optimizer run under `FakeTensorMode` with a stand-in for the
loss, while a tracker counts the bytes of all live tensors. That leaves out the CUDA context,
cuDNN workspaces and fragmentation, and takes the portable loss, not the fused GPU kernels.
Measured: the same step on the GPU, by its allocator. The two are kept apart.

The step is one from the middle of a training: momentum buffers exist, and the gradients of the step or
micro-batch before live on in the forward pass. It runs the code of `pipeline.train_step.step`. All pixels
count as labeled.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from models.segmenter import Segmenter
from pipeline.config.schema import LossSettings, Settings
from pipeline.memory.loss_footprint import (
    Channels,
    PeakTracker,
    PixelSource,
    losses_without_values,
    probe_work_memory,
)
from pipeline.runtime.device import GIB, choose_device, is_out_of_memory
from pipeline.runtime.errors import UsageError
from pipeline.runtime.progress import Progress
from pipeline.train_step.loss import Losses, segmentation_losses
from pipeline.train_step.model import build_model
from pipeline.train_step.optimizer import build_optimizer
from pipeline.train_step.step import LossFunction, accumulate_gradients

CLASS_COUNTS = (19, 150, 1_284, 10_000, 100_000)
HEADS = ("embedding", "softmax", "dense")
"""What is compared: the embedding head, the softmax head, and the softmax head with all logits at once."""
NOTE = (
    "Predictions count tensors; the CUDA context, cuDNN workspaces and fragmentation come on top, "
    "so leave some of the GPU free."
)


@dataclass(frozen=True)
class MemoryRow:
    """Hold the peak memory of one step with one head and number of classes."""

    head: str
    num_classes: int
    predicted_gib: float
    measured_gib: float | None
    """By the CUDA allocator; None without a GPU, or where the step does not fit into it."""


def memory_rows(
    settings: Settings,
    class_counts: Sequence[int] = CLASS_COUNTS,
    *,
    device: torch.device | None = None,
) -> list[MemoryRow]:
    """Predict every head with every number of classes; where a CUDA device is given, measure too."""
    rows = []
    with Progress("predict memory", len(HEADS) * len(class_counts), seconds=10.0) as progress:
        for head in HEADS:
            of_head = with_head(settings, head)
            for num_classes in class_counts:
                measured = None
                if device is not None:
                    measured = measure_bytes(of_head, num_classes, device)
                predicted = predict_bytes(of_head, num_classes) / GIB
                rows.append(
                    MemoryRow(head, num_classes, predicted, None if measured is None else measured / GIB)
                )
                progress.advance(f"{head}, {num_classes:,} classes: {predicted:.2f} GiB")
    return rows


def measuring_device(settings: Settings) -> torch.device | None:
    """Return the GPU to measure on; None without one, or where the settings keep to the CPU."""
    if settings.runtime.device == "cpu" or not torch.cuda.is_available():
        return None
    return choose_device(settings.runtime.device)


def as_json(settings: Settings, rows: Sequence[MemoryRow]) -> dict[str, object]:
    """Return the rows with the settings they hold for, ready to be written."""
    matters = {
        "precision",
        "momentum",
        "optimizer",
        "freeze_backbone",
        "accumulation_steps",
        "ema",
        "channels_last",
    }
    unused = ("model.pretrained", "model.weights", "model.head")
    return {
        "unit": "GiB",
        "batch_size": settings.train.images_per_step,
        "crop_size": settings.train.crop_size,
        "settings": {
            key: value
            for key, value in settings.flat().items()
            if key.removeprefix("train.") in matters
            or (key.startswith(("model.", "loss.")) and key not in unused)
        },
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def with_head(settings: Settings, name: str) -> Settings:
    """Return the settings with one of `HEADS`, and its loss: a loss other than `dense` is kept."""
    flat = "exact" if settings.loss.name == "dense" else settings.loss.name
    return with_changes(
        settings,
        model={"head": "embedding" if name == "embedding" else "softmax"},
        loss={"name": "dense" if name == "dense" else flat},
    )


def with_changes(
    settings: Settings,
    *,
    model: dict[str, object] | None = None,
    loss: dict[str, object] | None = None,
    train: dict[str, object] | None = None,
) -> Settings:
    """Return the settings with some values of the model, loss and train sections replaced."""
    return settings.model_copy(
        update={
            "model": settings.model.model_copy(update=model or {}),
            "loss": settings.loss.model_copy(update=loss or {}),
            "train": settings.train.model_copy(update=train or {}),
        }
    )


def predict_bytes(settings: Settings, num_classes: int) -> int:
    """Predict the peak bytes of one training step, from shapes alone.

    Args:
        settings: the model, loss and train sections count.
        num_classes: C.

    Raises:
        UsageError: a model that cannot be built or cannot take crops of this size.
    """
    work = None
    segmenter = _build(settings, num_classes)
    if settings.loss.name != "dense":
        crop = settings.train.crop_size, settings.train.crop_size
        target_shape = settings.train.micro_batch_size, *crop
        source = PixelSource.of(segmenter, segmenter.output_size(crop), target_shape, settings.loss)
        work = probe_work_memory(settings.loss, num_classes, Channels.of(segmenter), source)
    mode, tracker = FakeTensorMode(), PeakTracker()
    _replace_tensors(segmenter, mode)

    def losses(output: Tensor, target: Tensor, loss: LossSettings) -> Losses:
        return losses_without_values(segmenter, output, target, loss, work)

    with mode:
        state = _StateInUse(segmenter, settings)
        images, target = _zeros(settings)
        tracker.track(images, target, *state.tensors())
        try:
            with tracker:
                state.step(images, target, losses)
        except ValueError as error:
            raise UsageError(
                "the model cannot be trained on such a batch",
                where=f"train.crop_size {settings.train.crop_size}, {settings.train.micro_batch_size} images",
                found=error,
            ) from error
    return tracker.peak


def measure_bytes(settings: Settings, num_classes: int, device: torch.device) -> int | None:
    """Measure the CUDA allocator's peak bytes in one real training step; None if it does not fit."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        with torch.device(device):
            _real_step(settings, num_classes, device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        torch.cuda.empty_cache()
    return torch.cuda.max_memory_allocated(device) - before


def count_cpu_bytes(settings: Settings, num_classes: int) -> int:
    """Measure the CPU allocator's peak bytes in one real step: predictions are held to it."""
    return allocated_cpu_bytes(lambda: _real_step(settings, num_classes, torch.device("cpu")))


def allocated_cpu_bytes(call: Callable[[], object]) -> int:
    """Measure the peak bytes that torch's CPU allocator held for what `call` allocated, by torch's profiler.

    It counts everything that torch allocates, also inside its operators. Slow, as it computes.
    """
    from torch.profiler import ProfilerActivity, profile

    collects = gc.isenabled()
    gc.disable()  # what was left over from before must not be freed while counting
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            call()
    finally:
        if collects:
            gc.enable()
    return max(itertools.accumulate(_allocations(profiled), initial=0))


def _allocations(profiled: Any) -> Iterator[int]:
    """Yield the bytes of every allocation in order, negative when freed.

    Private to torch: its public `events()` only has sums for each operator.
    """
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            yield event.nbytes()


def _real_step(settings: Settings, num_classes: int, device: torch.device) -> None:
    segmenter = _build(settings, num_classes).to(device)
    generator = torch.Generator(device).manual_seed(0)
    images, target = (tensor.to(device) for tensor in _zeros(settings))
    images.random_(256, generator=generator)
    target.random_(num_classes, generator=generator)

    def losses(output: Tensor, target: Tensor, loss: LossSettings) -> Losses:
        return segmentation_losses(segmenter, output, target, loss, generator)

    _StateInUse(segmenter, settings).step(images, target, losses)


def _zeros(settings: Settings) -> tuple[Tensor, Tensor]:
    """Return images and target of a step. Two micro-batches show the peak of any number."""
    train = settings.train
    images = train.images_per_step if train.accumulation_steps == 1 else 2 * train.micro_batch_size
    size = (images, train.crop_size, train.crop_size)
    return torch.zeros(size[0], 3, *size[1:], dtype=torch.uint8), torch.zeros(size, dtype=torch.int64)


def _build(settings: Settings, num_classes: int) -> Segmenter:
    untrained = settings.model.model_copy(update={"pretrained": False, "weights": None})
    segmenter = build_model(untrained, num_classes).train()
    if settings.train.freeze_backbone:
        segmenter.freeze_backbone()
    if settings.train.channels_last:
        segmenter.to(memory_format=torch.channels_last)
    return segmenter


def _replace_tensors(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replace parameters and buffers by fake ones. Building under the mode fails for some models."""
    for submodule in module.modules():
        for name, parameter in list(submodule._parameters.items()):
            if parameter is None:
                continue
            fake = mode.from_tensor(parameter.detach())
            submodule._parameters[name] = nn.Parameter(fake, parameter.requires_grad)
        for name, buffer in submodule._buffers.items():
            if buffer is not None:
                submodule._buffers[name] = mode.from_tensor(buffer)


class _StateInUse:
    """Hold a segmenter's optimizer, gradients and average as they are after a step of training."""

    def __init__(self, segmenter: Segmenter, settings: Settings) -> None:
        train = settings.train
        self.segmenter, self.settings = segmenter, settings
        self.micro_batches = min(train.accumulation_steps, 2)
        self.optimizer = build_optimizer(segmenter, train.model_copy(update={"fused_optimizer": False}))
        averaged = [] if train.ema is None else segmenter.state_dict().values()
        self.averages: list[Tensor] = [torch.empty_like(tensor) for tensor in averaged]
        adamw = train.optimizer == "adamw"
        for parameter in (
            parameter for group in self.optimizer.param_groups for parameter in group["params"]
        ):
            parameter.grad = torch.zeros_like(parameter)
            state = self.optimizer.state[parameter]
            if adamw:
                state["step"] = torch.zeros(())
            names = ("exp_avg", "exp_avg_sq") if adamw else ("momentum_buffer",)
            for name in names if adamw or train.momentum > 0 else ():
                state[name] = torch.zeros_like(parameter)

    def tensors(self) -> Iterator[Tensor]:
        """Yield all that exists before the step: parameters, buffers, gradients, momentum and average."""
        for parameter in self.segmenter.parameters():
            yield parameter
            if parameter.grad is not None:
                yield parameter.grad
        yield from self.segmenter.buffers()
        for state in self.optimizer.state.values():
            yield from state.values()
        yield from self.averages

    def step(self, images: Tensor, target: Tensor, losses: LossFunction) -> None:
        """Take a step on (N, 3, H, W) uint8 images in the order of training, on which the peak depends."""
        accumulate_gradients(
            self.segmenter,
            self.segmenter.head,
            self.optimizer,
            images,
            target,
            self.settings,
            self.micro_batches,
            losses,
        )
        if isinstance(self.optimizer, torch.optim.AdamW) and isinstance(images, FakeTensor):
            self._adamw_without_values()
        else:
            self.optimizer.step()

    def _adamw_without_values(self) -> None:
        """Allocate what AdamW's step does; the real one reads its step count, and fakes have no values."""
        for state in self.optimizer.state.values():
            root = state["exp_avg_sq"].sqrt()
            _ = root / 1.0
