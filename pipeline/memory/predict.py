"""Peak memory of one training step: predicted without a GPU, measured where there is one.

Predicted: the real model, a stand-in for the loss, the backward pass and the optimizer run under fake
tensors, which have shapes but no values, while torch's tracker counts the bytes of all tensors alive. That
leaves out the CUDA context, cuDNN's workspaces and fragmentation, and takes the portable loss, not the fused
GPU kernels.
Measured: the same step on the GPU, by its allocator. The two are kept apart.

A step is that of the middle of a training: momentum buffers exist, and the gradients of the step before, or
of the part before where a step is divided, live on in the forward pass. It is `pipeline.train_step.step`'s own
code. All pixels count as labeled.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from models.segmenter import Segmenter
from pipeline.config.schema import LossSettings, Settings
from pipeline.memory.loss_footprint import PeakTracker, PixelSource, losses_without_values, probe_work_memory
from pipeline.runtime.device import GIB, choose_device, is_out_of_memory
from pipeline.runtime.errors import UsageError
from pipeline.train_step.loss import Losses, segmentation_losses
from pipeline.train_step.model import build_model
from pipeline.train_step.optimizer import build_optimizer
from pipeline.train_step.step import LossFunction, accumulate_gradients

CLASS_COUNTS = (19, 150, 1_284, 10_000, 100_000)
HEADS: tuple[Literal["embedding", "softmax"], ...] = ("embedding", "softmax")
NOTE = (
    "Predictions count tensors; the CUDA context, cuDNN workspaces and fragmentation come on top, "
    "so leave some of the GPU free."
)


@dataclass(frozen=True)
class MemoryRow:
    """Peak memory of one step with one head and number of classes."""

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
    """Predicts, and where a CUDA device is given measures, every head with every number of classes."""
    rows = []
    for head in HEADS:
        of_head = with_changes(settings, model={"head": head})
        for num_classes in class_counts:
            measured = None
            if device is not None:
                measured = measure_bytes(of_head, num_classes, device)
            rows.append(
                MemoryRow(
                    head,
                    num_classes,
                    predict_bytes(of_head, num_classes) / GIB,
                    None if measured is None else measured / GIB,
                )
            )
    return rows


def measuring_device(settings: Settings) -> torch.device | None:
    """The GPU to measure on; None without one, or where the settings keep to the CPU."""
    if settings.runtime.device == "cpu" or not torch.cuda.is_available():
        return None
    return choose_device(settings.runtime.device)


def as_json(settings: Settings, rows: Sequence[MemoryRow]) -> dict[str, object]:
    """The rows with what they hold for, ready to be written."""
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


def with_changes(
    settings: Settings,
    *,
    model: dict[str, object] | None = None,
    train: dict[str, object] | None = None,
) -> Settings:
    """The settings with some values of the model and train sections replaced."""
    return settings.model_copy(
        update={
            "model": settings.model.model_copy(update=model or {}),
            "train": settings.train.model_copy(update=train or {}),
        }
    )


def predict_bytes(settings: Settings, num_classes: int) -> int:
    """Peak bytes of one training step, from shapes alone.

    Args:
        settings: the model, loss and train sections count.
        num_classes: C.

    Raises:
        UsageError: a model that cannot be built or cannot take crops of this size.
    """
    work = None
    segmenter = _build(settings, num_classes)
    if settings.model.head == "embedding":
        crop = settings.train.crop_size, settings.train.crop_size
        target_shape = settings.train.micro_batch_size, *crop
        source = PixelSource.of(segmenter.output_size(crop), target_shape, settings.loss)
        work = probe_work_memory(settings.loss, num_classes, settings.model.embedding_dim, source)
    mode, tracker = FakeTensorMode(), PeakTracker()
    _replace_tensors(segmenter, mode)

    def losses(output: Tensor, target: Tensor, of_part: LossSettings) -> Losses:
        return losses_without_values(segmenter, output, target, of_part, work)

    def forward(pixels: Tensor) -> Tensor:
        tracker.reset_mod_stats()  # it refuses to see a module a second time
        return segmenter(pixels)

    with mode:
        state = _StateInUse(segmenter, settings)
        images, target = _zeros(settings)
        tracker.track_external(segmenter, state.optimizer, images, target, *state.averages)
        try:
            with tracker:
                state.step(images, target, losses, forward)
        except ValueError as error:
            raise UsageError(
                "the model cannot be trained on such a batch",
                where=f"train.crop_size {settings.train.crop_size}, {settings.train.micro_batch_size} images",
                found=error,
            ) from error
    return tracker.peak


def measure_bytes(settings: Settings, num_classes: int, device: torch.device) -> int | None:
    """Peak bytes that the CUDA allocator handed out for one real training step; None if it does not fit."""
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
    """Peak bytes that torch's CPU allocator handed out for one real step: predictions are held to it."""
    return allocated_cpu_bytes(lambda: _real_step(settings, num_classes, torch.device("cpu")))


def allocated_cpu_bytes(call: Callable[[], object]) -> int:
    """Peak bytes that torch's CPU allocator held at a time for what `call` allocated, by torch's profiler.

    It counts everything that torch allocates, also inside its operators. Slow, as it computes.
    """
    from torch.profiler import ProfilerActivity, profile

    gc.collect()  # what was left over from before must not be freed while counting
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = profiled.profiler.kineto_results.events()
    held = peak = 0
    for event in events:
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def _real_step(settings: Settings, num_classes: int, device: torch.device) -> None:
    segmenter = _build(settings, num_classes).to(device)
    generator = torch.Generator(device).manual_seed(0)
    images, target = (tensor.to(device) for tensor in _zeros(settings))
    images.random_(256, generator=generator)
    target.random_(num_classes, generator=generator)

    def losses(output: Tensor, target: Tensor, of_part: LossSettings) -> Losses:
        return segmentation_losses(segmenter, output, target, of_part, generator)

    _StateInUse(segmenter, settings).step(images, target, losses)


def _zeros(settings: Settings) -> tuple[Tensor, Tensor]:
    """Images and target of a step. Two parts show the peak of any number."""
    options = settings.train
    images = options.images_per_step if options.accumulation_steps == 1 else 2 * options.micro_batch_size
    size = (images, options.crop_size, options.crop_size)
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
    """Replaces parameters and buffers by fake ones. Building under the mode fails for some models."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is None:
                continue
            fake = mode.from_tensor(parameter.detach())
            if parameter.requires_grad:
                part._parameters[name] = nn.Parameter(fake)
            else:  # the tracker hooks every parameter's gradient, and a frozen one has none
                del part._parameters[name]
                part.register_buffer(name, fake)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = mode.from_tensor(buffer)


class _StateInUse:
    """A segmenter's optimizer, gradients and average as they are after a step of training."""

    def __init__(self, segmenter: Segmenter, settings: Settings) -> None:
        options = settings.train
        self.segmenter, self.settings = segmenter, settings
        self.parts = min(options.accumulation_steps, 2)
        self.optimizer = build_optimizer(segmenter, options.model_copy(update={"fused_optimizer": False}))
        averaged = [] if options.ema is None else segmenter.state_dict().values()
        self.averages: list[Tensor] = [torch.empty_like(tensor) for tensor in averaged]
        adamw = options.optimizer == "adamw"
        for parameter in (
            parameter for group in self.optimizer.param_groups for parameter in group["params"]
        ):
            parameter.grad = torch.zeros_like(parameter)
            state = self.optimizer.state[parameter]
            if adamw:
                state["step"] = torch.zeros(())
            names = ("exp_avg", "exp_avg_sq") if adamw else ("momentum_buffer",)
            for name in names if adamw or options.momentum > 0 else ():
                state[name] = torch.zeros_like(parameter)

    def step(
        self,
        images: Tensor,
        target: Tensor,
        losses: LossFunction,
        forward: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """One step on (N, 3, H, W) uint8 images, in the very order of training, on which the peak depends."""
        accumulate_gradients(
            forward or self.segmenter, self.optimizer, images, target, self.settings, self.parts, losses
        )
        if isinstance(self.optimizer, torch.optim.AdamW) and isinstance(images, FakeTensor):
            self._adamw_without_values()
        else:
            self.optimizer.step()

    def _adamw_without_values(self) -> None:
        """Allocates what AdamW's step does, which reads its count of steps: fake tensors have no values."""
        for state in self.optimizer.state.values():
            root = state["exp_avg_sq"].sqrt()
            _ = root / 1.0
