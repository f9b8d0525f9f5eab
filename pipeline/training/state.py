"""Keep a training's progress, its losses that still lie on the device, and its time spent on waiting."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.config.renamed import current_names
from pipeline.data.loading.batch import Batch
from pipeline.runtime.errors import KilosegError
from pipeline.train_step.step import StepLosses

READ_EVERY = 16
"""Steps between two readings of the loss. Each one waits for the GPU; a NaN is noticed this late at most."""


@dataclass
class TrainState:
    """Hold what has happened so far; JSON-able, kept in every checkpoint."""

    run_id: str | None = None
    finished: bool = False
    best_step: int = 0
    best_miou: float | None = None
    """of the checkpoint of `best_step`; None before the first validation, or where there is none"""
    seconds: float = 0.0
    peak_memory_gib: float = 0.0
    pending_loss: float = 0.0
    pending_steps: int = 0
    loss_curve: list[list[float]] = field(default_factory=list)
    """[step, mean cross-entropy since the point before]"""
    validation_curve: list[list[float | None]] = field(default_factory=list)
    """[step, mIoU, pixel accuracy] on the held-out part; None where nothing can be measured"""
    accumulation_steps: int | None = None
    """as found by batch_size: auto; a resumed run must divide its batches as before"""
    scale: dict[str, Any] | None = None
    """the loss scale of fp16"""
    stepping_seconds: float = 0.0
    """in the loop over the steps, without validation, checkpoints and each process's first batch"""
    waiting_seconds: float = 0.0
    """of these, spent waiting for a batch"""
    threads: int | None = None
    """of torch on the CPU, in the process that trained last; another number rounds sums otherwise"""
    processor: str | None = None
    """of that process; another one rounds sums otherwise too"""

    @classmethod
    def from_progress(cls, progress: Mapping[str, Any]) -> TrainState:
        """Rebuild the state that a checkpoint holds, under the names of its time."""
        state = cls(**current_names("train", progress))
        if state.best_miou == -1.0:  # as None was written once
            state.best_miou = None
        return state

    @property
    def data_wait_share(self) -> float:
        """Return the share of the loop's time in which training waited for data."""
        return self.waiting_seconds / max(self.stepping_seconds, 1e-9)


@dataclass(frozen=True)
class Reading:
    """Hold the losses of one step, on the host."""

    step: int
    cross_entropy: float
    separation: float
    learning_rate: float


class PendingLosses:
    """Keep each step's losses on the device, with the ids of its images, until they are read.

    Args:
        state: its `pending_loss` and `pending_steps` grow by what is read.
    """

    def __init__(self, state: TrainState) -> None:
        self.state = state
        self.last: Reading | None = None
        self._unread: list[tuple[int, StepLosses]] = []
        self._images: deque[tuple[int, tuple[int, ...]]] = deque(maxlen=READ_EVERY + 1)

    def add(self, step: int, losses: StepLosses, image_ids: tuple[int, ...]) -> None:
        """Take note of the 1-based `step`; read when many are unread."""
        self._unread.append((step, losses))
        self._images.append((step, image_ids))
        if len(self._unread) >= READ_EVERY:
            self.read()

    def read(self) -> None:
        """Bring all unread losses to the host, in one transfer.

        Raises:
            KilosegError: one of them is not finite; names its step and images, and those of the step before.
        """
        if not self._unread:
            return
        scalars: list[Tensor] = [
            scalar for _, found in self._unread for scalar in (found.cross_entropy, found.separation)
        ]
        values = iter(torch.stack(scalars).tolist())
        unread, self._unread = self._unread, []
        for (step, found), cross_entropy, separation in zip(unread, values, values, strict=True):
            if not math.isfinite(cross_entropy + separation):
                raise self.not_finite("the loss is no longer finite", step, cross_entropy)
            self.state.pending_loss += cross_entropy
            self.state.pending_steps += 1
            self.last = Reading(step, cross_entropy, separation, found.learning_rate)

    def not_finite(self, what: str, step: int, found: object) -> KilosegError:
        """Return the error of a divergence at `step`, naming its images and those of the update before."""
        images = dict(self._images)
        where = f"step {step}, images {_listed(images.get(step, ()))}"
        if step - 1 in images:
            where += f"; the update before was step {step - 1}, images {_listed(images[step - 1])}"
        return KilosegError(
            what,
            where=where,
            found=found,
            hint="lower train.learning_rate, set train.gradient_clip, or raise loss.temperature; "
            "the checkpoints from before are kept",
        )


def _listed(image_ids: tuple[int, ...]) -> str:
    return ", ".join(str(image_id) for image_id in image_ids)


class DataWait:
    """Measure how long the loop over the steps waits for batches, and how long it takes.

    On a GPU, which still computes while the next batch is awaited, this is the most that waiting can cost.

    Args:
        state: its `waiting_seconds` and `stepping_seconds` grow.
    """

    def __init__(self, state: TrainState) -> None:
        self.state, self._aside = state, 0.0

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches. The wait for the first is left out: worker processes start before it."""
        iterator = iter(batches)
        batch, began = next(iterator, None), time.perf_counter()
        while batch is not None:
            self._aside = 0.0
            yield batch
            asked = time.perf_counter()
            batch = next(iterator, None)
            got = time.perf_counter()
            self.state.waiting_seconds += got - asked
            self.state.stepping_seconds += got - began - self._aside
            began = got

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the block, for example a validation, out of the loop's time."""
        began = time.perf_counter()
        yield
        self._aside += time.perf_counter() - began
