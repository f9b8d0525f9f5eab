"""One step of training: forward, loss and backward of every part of the batch, then one update.

Nothing in it asks the device for a value, so a GPU is never waited for: what a step costs is read later
(`pipeline.training.state.PendingLosses`). `pipeline.memory.predict` predicts the peak of `accumulate_gradients` itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.segmenter import Segmenter
from pipeline.config.schema import LossSettings, Settings, TrainSettings
from pipeline.data.loading.batch import IGNORE_INDEX, Batch
from pipeline.runtime.errors import KilosegError
from pipeline.train_step.ema import ModelEma
from pipeline.train_step.loss import Losses, segmentation_losses
from pipeline.train_step.optimizer import build_optimizer, set_learning_rate
from pipeline.train_step.precision import autocast

LossFunction = Callable[[Tensor, Tensor, LossSettings], Losses]


@dataclass(frozen=True)
class StepLosses:
    """What a step found: scalars still on the device, and the rate it was taken at."""

    cross_entropy: Tensor
    separation: Tensor
    learning_rate: float


class TrainStep:
    """The network with everything that changes it: optimizer, loss scale, moving average.

    Args:
        segmenter: on the device, in training mode.
        settings: the train and loss sections count.
        accumulation_steps: parts into which a batch is divided.
        before_update: called in each step before the first weight changes; what it raises ends the step.

    Raises:
        KilosegError: `train.compile` where the network cannot be compiled (at the first step).
    """

    def __init__(
        self,
        segmenter: Segmenter,
        settings: Settings,
        *,
        accumulation_steps: int,
        before_update: Callable[[], None] = lambda: None,
    ) -> None:
        self.before_update = before_update
        self.segmenter, self.settings, self.accumulation_steps = segmenter, settings, accumulation_steps
        options = settings.train
        self.device = next(segmenter.parameters()).device
        if options.channels_last:
            segmenter.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(segmenter, options)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "fp16")
        self.average = None if options.ema is None else ModelEma(segmenter, options.ema)
        self._forward: Callable[[Tensor], Tensor] = (
            torch.compile(segmenter, dynamic=False) if options.compile else segmenter
        )

    @property
    def eval_model(self) -> Segmenter:
        """The network to validate and to keep: the average where there is one."""
        return self.segmenter if self.average is None else self.average.segmenter

    def step(self, batch: Batch, step: int) -> StepLosses:
        """Takes the 0-based `step` on the batch."""
        options = self.settings.train
        rate = set_learning_rate(self.optimizer, options, step)
        seed = options.seed * 1_000_003 + step
        torch.manual_seed(seed)  # dropout and stochastic depth, the same after a resume
        generator = torch.Generator(self.device).manual_seed(seed)

        def losses(output: Tensor, target: Tensor, settings: LossSettings) -> Losses:
            return segmentation_losses(self.segmenter, output, target, settings, generator)

        images = batch.images.to(self.device, non_blocking=True)
        target = batch.target.to(self.device, non_blocking=True)
        try:
            found = accumulate_gradients(
                self._forward,
                self.optimizer,
                images,
                target,
                self.settings,
                self.accumulation_steps,
                losses,
                self.scaler,
            )
        except torch._dynamo.exc.TorchDynamoException as error:
            raise _not_compiled(error) from error
        self.before_update()
        self._update(options)
        if self.average is not None:
            self.average.update(step)
        return StepLosses(found.cross_entropy, found.separation, rate)

    def _update(self, options: TrainSettings) -> None:
        if options.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.segmenter.parameters(), options.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def scale_state(self) -> dict[str, Any] | None:
        """The loss scale of fp16 as JSON-able numbers; None where there is none."""
        return self.scaler.state_dict() or None

    def weights_are_finite(self) -> bool:
        """Whether no weight or statistic is NaN or infinite. Waits for the device."""
        tensors = [tensor for tensor in self.segmenter.state_dict().values() if tensor.is_floating_point()]
        return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def accumulate_gradients(
    forward: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    target: Tensor,
    settings: Settings,
    parts: int,
    losses: LossFunction,
    scaler: torch.amp.GradScaler | None = None,
) -> Losses:
    """Leaves in the parameters the gradient of the loss of the whole batch, a part of it in memory at a time.

    Every part's mean is weighted by its share of the labeled pixels, so that the sum is the mean over the
    batch, and a pixel budget is divided among the parts. What differs from an undivided batch is
    batch norm, whose statistics are those of a part.

    Args:
        forward: (n, 3, H, W) floats in [0, 1] to the head's output.
        optimizer: whose gradients of the step before are dropped, only after the first forward pass.
        images: (N, 3, H, W) uint8.
        target: (N, H, W) int64.
        settings: the train and loss sections count.
        parts: into which the N images are divided, as evenly as possible.
        losses: of an output and its target.
        scaler: multiplies what is differentiated; None for 1.

    Returns:
        The losses of the whole batch, detached.
    """
    loss_settings = settings.loss
    if parts > 1 and loss_settings.pixel_budget is not None:
        budget = -(-loss_settings.pixel_budget // parts)
        loss_settings = loss_settings.model_copy(update={"pixel_budget": budget})
    targets = target.tensor_split(parts)
    weights = _shares(targets) if parts > 1 else [None]
    whole: Losses | None = None
    for part, (some_images, some_target, weight) in enumerate(
        zip(images.tensor_split(parts), targets, weights, strict=True)
    ):
        pixels = _as_floats(some_images, settings.train)
        with autocast(settings.train.precision, pixels.device.type):
            output = forward(pixels)
        found = losses(output, some_target, loss_settings)
        if weight is not None:
            found = Losses(found.total * weight, found.cross_entropy * weight, found.separation * weight)
        if part == 0:
            optimizer.zero_grad(set_to_none=True)
        (found.total if scaler is None else scaler.scale(found.total)).backward()
        whole = found if whole is None else _sum(whole, found)
        del output, pixels
    assert whole is not None
    return Losses(whole.total.detach(), whole.cross_entropy, whole.separation)


def _as_floats(images: Tensor, options: TrainSettings) -> Tensor:
    pixels = images.float() / 255
    return pixels.contiguous(memory_format=torch.channels_last) if options.channels_last else pixels


def _shares(targets: tuple[Tensor, ...]) -> list[Tensor]:
    """Of each part, its share of the labeled pixels, on the device; equal where there is none at all."""
    labeled = torch.stack([(target != IGNORE_INDEX).sum() for target in targets])
    total = labeled.sum()
    shares = torch.where(total > 0, labeled / total.clamp(min=1), 1 / len(targets))
    return list(shares.unbind())


def _sum(one: Losses, other: Losses) -> Losses:
    return Losses(
        one.total.detach() + other.total.detach(),
        one.cross_entropy + other.cross_entropy,
        one.separation + other.separation,
    )


def _not_compiled(error: Exception) -> KilosegError:
    return KilosegError(
        "the network could not be compiled",
        where="train.compile",
        found=str(error).strip().splitlines()[0],
        hint="set train.compile to false; on the CPU torch.compile needs a C++ compiler",
    )
