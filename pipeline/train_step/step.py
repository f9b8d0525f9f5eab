"""Take one training step: forward, loss and backward of every micro-batch, then one update.

No host-device sync inside a step; losses stay on the device and are read every 16 steps
(`pipeline.training.state.PendingLosses`). `pipeline.memory.predict` runs `accumulate_gradients` to predict
its peak memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.implementation import implementation_on
from models.segmenter import Segmenter
from pipeline.config.schema import LossSettings, Settings, TrainSettings
from pipeline.data.loading.batch import IGNORE_INDEX, Batch
from pipeline.runtime.errors import KilosegError
from pipeline.train_step.ema import ModelEma
from pipeline.train_step.long_tail import ClassFrequencies, LongTail
from pipeline.train_step.loss import Losses, segmentation_losses
from pipeline.train_step.optimizer import build_optimizer, set_learning_rate
from pipeline.train_step.precision import autocast

LossFunction = Callable[[Tensor, Tensor, LossSettings], Losses]


@dataclass(frozen=True)
class StepLosses:
    """Hold the losses of a step, scalars still on the device, and its learning rate."""

    cross_entropy: Tensor
    separation: Tensor
    learning_rate: float


class TrainStep:
    """Train a network step by step: with its optimizer, loss scale and moving average.

    Args:
        segmenter: on the device, in training mode.
        settings: the train and loss sections count.
        accumulation_steps: micro-batches into which a batch is divided.
        frequencies: of the classes in the images to train on, for `loss.logit_adjustment` and
            `loss.class_weights`.
        threads: that may be used; in a deterministic training by what does not depend on their number.
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
        frequencies: ClassFrequencies | None = None,
        threads: int | None = None,
    ) -> None:
        self.before_update = before_update
        self.segmenter, self.settings, self.accumulation_steps = segmenter, settings, accumulation_steps
        train = settings.train
        self.device = next(segmenter.parameters()).device
        if train.channels_last:
            segmenter.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(segmenter, train)
        self.long_tail = LongTail()
        if frequencies is not None:
            self.long_tail = LongTail.of(settings.loss, frequencies, self.device)
        self.loss_threads = threads if _loss_may_use_threads(train, self.device) else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=train.precision == "fp16")
        self.average = None if train.ema is None else ModelEma(segmenter, train.ema)
        self._forward: Callable[[Tensor], Tensor] = (
            torch.compile(segmenter, dynamic=False) if train.compile else segmenter
        )

    @property
    def eval_model(self) -> Segmenter:
        """Return the network to validate and to keep: the average where there is one."""
        return self.segmenter if self.average is None else self.average.segmenter

    def __call__(self, batch: Batch, step: int) -> StepLosses:
        """Take the 0-based `step` on the batch."""
        train = self.settings.train
        rate = set_learning_rate(self.optimizer, train, step)
        seed = (train.seed * 1_000_003 + step) % 2**63  # what torch takes
        torch.manual_seed(seed)  # dropout and stochastic depth, the same after a resume
        generator = torch.Generator(self.device).manual_seed(seed)

        def losses(output: Tensor, target: Tensor, settings: LossSettings) -> Losses:
            return segmentation_losses(
                self.segmenter, output, target, settings, generator, self.long_tail, self.loss_threads
            )

        images = batch.images.to(self.device, non_blocking=True)
        target = batch.target.to(self.device, non_blocking=True)
        try:
            found = accumulate_gradients(
                self._forward,
                self.segmenter.head,
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
        self._update(train)
        if self.average is not None:
            self.average.update(step)
        return StepLosses(found.cross_entropy, found.separation, rate)

    def _update(self, train: TrainSettings) -> None:
        if train.gradient_clip is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.segmenter.parameters(), train.gradient_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def scale_state(self) -> dict[str, Any] | None:
        """Return the loss scale of fp16 as JSON-able numbers; None where there is none."""
        return self.scaler.state_dict() or None

    def weights_are_finite(self) -> bool:
        """Tell whether all weights and statistics are finite. Waits for the device."""
        tensors = [tensor for tensor in self.segmenter.state_dict().values() if tensor.is_floating_point()]
        return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())


def _loss_may_use_threads(train: TrainSettings, device: torch.device) -> bool:
    """Tell whether the exact loss may have more threads than torch: compiled, its sums have a fixed order."""
    return train.deterministic and device.type == "cpu" and implementation_on(device) == "compiled"


def accumulate_gradients(
    forward: Callable[[Tensor], Tensor],
    head: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    target: Tensor,
    settings: Settings,
    micro_batches: int,
    losses: LossFunction,
    scaler: torch.amp.GradScaler | None = None,
) -> Losses:
    """Accumulate the gradient of the whole batch's loss, one micro-batch in memory at a time.

    The mean of each micro-batch is weighted by its share of the labeled pixels, so the sum is the mean over
    the batch. A pixel budget is divided among the micro-batches. Only batch norm differs from an undivided
    batch: its statistics are those of a micro-batch.

    Args:
        forward: (n, 3, H, W) floats in [0, 1] to the head's output.
        head: its old gradients are dropped before the first loss, which makes new ones as large.
        optimizer: all old gradients are dropped after the first loss.
        images: (N, 3, H, W) uint8.
        target: (N, H, W) int64.
        settings: the train and loss sections count.
        micro_batches: their number; the N images are divided as evenly as possible.
        losses: of an output and its target.
        scaler: scales the loss that is differentiated; None for 1.

    Returns:
        The losses of the whole batch, detached.
    """
    loss_settings = settings.loss
    if micro_batches > 1 and loss_settings.pixel_budget is not None:
        budget = -(-loss_settings.pixel_budget // micro_batches)
        loss_settings = loss_settings.model_copy(update={"pixel_budget": budget})
    targets = target.tensor_split(micro_batches)
    weights = _labeled_shares(targets) if micro_batches > 1 else [None]
    whole: Losses | None = None
    for index, (some_images, some_target, weight) in enumerate(
        zip(images.tensor_split(micro_batches), targets, weights, strict=True)
    ):
        pixels = _as_floats(some_images, settings.train)
        with autocast(settings.train.precision, pixels.device.type):
            output = forward(pixels)
        if index == 0:
            head.zero_grad(set_to_none=True)
        found = losses(output, some_target, loss_settings)
        if weight is not None:
            found = Losses(found.total * weight, found.cross_entropy * weight, found.separation * weight)
        if index == 0:
            optimizer.zero_grad(set_to_none=True)
        (found.total if scaler is None else scaler.scale(found.total)).backward()
        whole = found if whole is None else _sum(whole, found)
        del output, pixels
    assert whole is not None
    return Losses(whole.total.detach(), whole.cross_entropy, whole.separation)


def _as_floats(images: Tensor, train: TrainSettings) -> Tensor:
    pixels = images.float() / 255
    return pixels.contiguous(memory_format=torch.channels_last) if train.channels_last else pixels


def _labeled_shares(targets: tuple[Tensor, ...]) -> list[Tensor]:
    """Return each micro-batch's share of the labeled pixels, on the device; equal shares if there is none."""
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
