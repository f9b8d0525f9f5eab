"""Peak memory of one training step: predicted without a GPU, measured where there is one.

Predicted: the real model, a stand-in for the loss, the backward pass and the optimiser run under fake
tensors, which have shapes but no values, while torch's tracker counts the bytes of all tensors alive. That
leaves out the CUDA context, cuDNN's workspaces and fragmentation, and takes the portable loss, not the fused
GPU kernels.
Measured: the same step on the GPU, by its allocator. The two are kept apart.

A step is that of the middle of a training: momentum buffers exist, and the gradients of the step
before live until the backward pass, as in `pipeline.training`. All pixels count as labelled.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from models.segmenter import Segmenter
from pipeline.errors import MemoryProblem, UsageProblem
from pipeline.loss_footprint import PeakTracker, losses_without_values, probe_work_memory
from pipeline.network import build_network
from pipeline.objective import Losses, segmentation_losses
from pipeline.optim import build_optimizer
from pipeline.runtime import GIB, choose_device, is_out_of_memory
from pipeline.settings import Settings

CLASS_COUNTS = (19, 150, 1_284, 10_000, 100_000)
HEADS: tuple[Literal["embedding", "softmax"], ...] = ("embedding", "softmax")
SMALLEST_CROP = 48
NOTE = (
    "Predictions count tensors; the CUDA context, cuDNN workspaces and fragmentation come on top, "
    "so leave some of the GPU free."
)

LossFunction = Callable[[Segmenter, Tensor, Tensor], Losses]


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
    matters = ("train.precision", "train.momentum", "train.optimizer", "train.freeze_backbone")
    unused = ("model.pretrained", "model.weights", "model.head")
    return {
        "unit": "GiB",
        "batch_size": settings.train.batch_size,
        "crop_size": settings.train.crop_size,
        "settings": {
            key: value
            for key, value in settings.flat().items()
            if key in matters or (key.startswith(("model.", "loss.")) and key not in unused)
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
        UsageProblem: a model that cannot be built or cannot take crops of this size.
    """
    options = settings.train
    work = None
    if settings.model.head == "embedding":
        work = probe_work_memory(settings.loss, num_classes, settings.model.embedding_dim)
    segmenter = _build(settings, num_classes)
    mode = FakeTensorMode()
    _replace_tensors(segmenter, mode)
    tracker = PeakTracker()

    def losses(segmenter: Segmenter, output: Tensor, target: Tensor) -> Losses:
        return losses_without_values(segmenter, output, target, settings.loss, work)

    with mode:
        size = (options.batch_size, options.crop_size, options.crop_size)
        images = torch.zeros(size[0], 3, *size[1:], dtype=torch.uint8)
        target = torch.zeros(size, dtype=torch.int64)
        optimizer = _optimizer_in_use(segmenter, settings)
        tracker.track_external(segmenter, optimizer, images, target)
        try:
            with tracker:
                _step(segmenter, optimizer, images, target, settings, losses)
        except ValueError as error:
            raise UsageProblem(
                "the model cannot be trained on such a batch",
                where=f"train.crop_size {options.crop_size}, batch_size {options.batch_size}",
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
    """Peak bytes that torch's CPU allocator handed out for one real step: predictions are held to it.

    It counts everything that torch allocates, also inside its operators. Slow, as it computes.
    """
    from torch.profiler import ProfilerActivity, profile

    gc.collect()  # what was left over from before must not be freed while counting
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        _real_step(settings, num_classes, torch.device("cpu"))
    events = profiled.profiler.kineto_results.events()
    held = peak = 0
    for event in events:
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def _real_step(settings: Settings, num_classes: int, device: torch.device) -> None:
    options = settings.train
    segmenter = _build(settings, num_classes).to(device)
    optimizer = _optimizer_in_use(segmenter, settings)
    size = (options.batch_size, options.crop_size, options.crop_size)
    images = torch.randint(256, (size[0], 3, *size[1:]), dtype=torch.uint8, device=device)
    target = torch.randint(num_classes, size, device=device)
    generator = torch.Generator(device).manual_seed(0)

    def losses(segmenter: Segmenter, output: Tensor, target: Tensor) -> Losses:
        return segmentation_losses(segmenter, output, target, settings.loss, generator)

    _step(segmenter, optimizer, images, target, settings, losses)


def _step(
    segmenter: Segmenter,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    target: Tensor,
    settings: Settings,
    losses: LossFunction,
) -> None:
    """One step in the very order of `pipeline.training`, on which the peak depends."""
    pixels = images.float() / 255
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=settings.train.precision == "bf16"):
        output = segmenter(pixels)
    result = losses(segmenter, output, target)
    optimizer.zero_grad(set_to_none=True)
    result.total.backward()
    if isinstance(optimizer, torch.optim.AdamW) and isinstance(pixels, FakeTensor):
        _adamw_without_values(optimizer)
    else:
        optimizer.step()


def _adamw_without_values(optimizer: torch.optim.AdamW) -> None:
    """Allocates what AdamW's step does, which reads its count of steps: a value that fake tensors lack."""
    for state in optimizer.state.values():
        root = state["exp_avg_sq"].sqrt()
        _ = root / 1.0


def _build(settings: Settings, num_classes: int) -> Segmenter:
    untrained = settings.model.model_copy(update={"pretrained": False, "weights": None})
    segmenter = build_network(untrained, num_classes).train()
    if settings.train.freeze_backbone:
        segmenter.freeze_backbone()
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


def _optimizer_in_use(segmenter: Segmenter, settings: Settings) -> torch.optim.Optimizer:
    """The optimiser as after a step: with its buffers, and gradients that are not yet dropped."""
    optimizer = build_optimizer(segmenter, settings.train)
    adamw = settings.train.optimizer == "adamw"
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        parameter.grad = torch.zeros_like(parameter)
        state = optimizer.state[parameter]
        if adamw:
            state["step"] = torch.zeros(())
        names = ("exp_avg", "exp_avg_sq") if adamw else ("momentum_buffer",)
        for name in names if adamw or settings.train.momentum > 0 else ():
            state[name] = torch.zeros_like(parameter)
    return optimizer


@dataclass(frozen=True)
class Fit:
    """The largest batch whose predicted peak stays within a budget."""

    batch_size: int
    predicted_bytes: int
    next_predicted_bytes: int
    """of a batch with one image more"""


def largest_batch(settings: Settings, num_classes: int, budget_bytes: int) -> Fit:
    """Finds the largest `train.batch_size` that fits: extrapolates until two predictions enclose the budget.

    Raises:
        MemoryProblem: not even one image fits; says which crop would.
    """

    @functools.cache
    def predicted(batch_size: int) -> int:
        return predict_bytes(with_changes(settings, train={"batch_size": batch_size}), num_classes)

    if predicted(1) > budget_bytes:
        raise _nothing_fits(settings, num_classes, budget_bytes, predicted(1))
    fits, too_large, guess = 1, math.inf, 2
    while too_large - fits > 1:
        if predicted(guess) <= budget_bytes:
            fits = guess
        else:
            too_large = guess
        slope = max(1.0, (predicted(guess) - predicted(1)) / (guess - 1))
        guess = fits + max(1, math.floor((budget_bytes - predicted(fits)) / slope))
        guess = int(min(guess, too_large - 1))
    return Fit(fits, predicted(fits), predicted(fits + 1))


def _nothing_fits(settings: Settings, num_classes: int, budget: int, needed: int) -> MemoryProblem:
    crop, mend = settings.train.crop_size // 2, "take a smaller backbone or fewer decoder_channels"
    while crop >= SMALLEST_CROP:
        if _one_image(settings, crop, num_classes) <= budget:
            mend = f"one image fits with train.crop_size {crop}"
            break
        crop //= 2
    return MemoryProblem(
        "not even a batch of one image fits",
        where=f"{num_classes} classes, head {settings.model.head}, crop_size {settings.train.crop_size}",
        found=f"{needed / GIB:.2f} GiB predicted",
        allowed=f"{budget / GIB:.2f} GiB",
        mend=mend,
    )


def _one_image(settings: Settings, crop: int, num_classes: int) -> int:
    changed = with_changes(settings, train={"batch_size": 1, "crop_size": crop})
    return predict_bytes(changed, num_classes)
