"""Training: settings in, the best checkpoint and its curves out.

Everything random is a function of the seed and the step (data order, augmentation, drawn negatives, dropout),
so a killed run that resumes from its last checkpoint computes what it would have computed. The checkpoint to
report is chosen on the held-out part of train, never on val.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.checkpoint import Checkpoint, load_checkpoint, optimizer_tensors, restore_optimizer
from pipeline.data.dataset import SegmentationDataset
from pipeline.data.loaders import Batch, evaluation_loader, train_loader
from pipeline.data.sampling import repeat_factors
from pipeline.data.transforms import TrainTransform
from pipeline.errors import DataProblem, Problem
from pipeline.evaluation import evaluate
from pipeline.network import build_network, segmenter_arguments
from pipeline.objective import Losses, segmentation_losses
from pipeline.optim import build_optimizer, set_learning_rate
from pipeline.runtime import PeakMemory, Progress, StopRequest, choose_device, set_threads
from pipeline.settings import Settings
from pipeline.tracking import Tracker


@dataclass
class TrainState:
    """What has happened so far; JSON-able, kept in every checkpoint."""

    run_id: str | None = None
    finished: bool = False
    best_step: int = 0
    best_miou: float = -1.0
    seconds: float = 0.0
    peak_memory_gib: float = 0.0
    pending_loss: float = 0.0
    pending_steps: int = 0
    loss_curve: list[list[float]] = field(default_factory=list)
    """[step, mean cross-entropy since the point before]"""
    validation_curve: list[list[float]] = field(default_factory=list)
    """[step, mIoU, pixel accuracy] on the held-out part"""


@dataclass(frozen=True)
class TrainResult:
    """Where the best checkpoint is, and how it came about."""

    checkpoint: Path
    state: TrainState
    steps: int
    images_per_second: float
    peak_memory_kind: str
    device: str


def checkpoint_folder(settings: Settings) -> Path:
    """Folder of this variant's `best.safetensors`, and, to resume from, `last` and `previous.safetensors`."""
    return settings.project / "checkpoints" / (settings.variant or "default")


def interrupted_state(settings: Settings) -> TrainState | None:
    """The state of an unfinished run under these very settings, or None."""
    checkpoint = _interrupted(settings, checkpoint_folder(settings), header_only=True)
    return None if checkpoint is None else TrainState(**checkpoint.progress)


def _interrupted(settings: Settings, folder: Path, *, header_only: bool = False) -> Checkpoint | None:
    """The last checkpoint of an unfinished run under these settings, or the one before if that is damaged."""
    for name in ("last", "previous"):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            continue
        try:
            checkpoint = load_checkpoint(path, header_only=header_only)
        except DataProblem as problem:
            print(f"warning: {problem.what}: {path}: passed over", file=sys.stderr, flush=True)
            continue
        same = checkpoint.settings == settings.flat() and not checkpoint.progress["finished"]
        return checkpoint if same else None
    return None


def train(settings: Settings, tracker: Tracker, *, folder: Path | None = None) -> TrainResult:
    """Trains one model, resuming where a killed run under the same settings stopped.

    Args:
        settings: one variant's.
        tracker: receives the parameters and curves.
        folder: for the checkpoints; by default `checkpoint_folder(settings)`.

    Raises:
        DataProblem: nothing bootstrapped, unreadable data.
        Problem: the loss is no longer finite.
    """
    training = _Training(settings, tracker, folder or checkpoint_folder(settings))
    tracker.log_params(settings.flat())
    return training.run()


class _Training:
    """One run: model, optimiser, data and state, with the loop over the steps."""

    def __init__(self, settings: Settings, tracker: Tracker, folder: Path) -> None:
        self.settings, self.tracker = settings, tracker
        self.folder, self.best = folder, folder / "best.safetensors"
        self.device = choose_device(settings.runtime.device)
        set_threads(settings.runtime.threads)
        self.memory = PeakMemory(self.device)
        self.data = SegmentationDataset(settings.bootstrapped, settings.data.root, "train")
        self.holdout = SegmentationDataset(settings.bootstrapped, settings.data.root, "holdout")
        if not len(self.data) or not len(self.holdout):
            raise DataProblem(
                "too few images to train",
                where=settings.bootstrapped,
                found=f"{len(self.data)} train and {len(self.holdout)} held-out images",
                allowed="at least one of each",
                mend="add images, or change data.holdout_fraction, and run dvc repro",
            )
        self.label_space = self.data.label_space
        torch.manual_seed(settings.train.seed)
        self.arguments = segmenter_arguments(settings.model, self.label_space.num_classes)
        self.segmenter = build_network(settings.model, self.label_space.num_classes).to(self.device).train()
        if settings.train.freeze_backbone:
            self.segmenter.freeze_backbone()
        self.optimizer = build_optimizer(self.segmenter, settings.train)
        self.state, self.step = TrainState(run_id=tracker.run_id), 0
        self._resume()

    def _resume(self) -> None:
        checkpoint = _interrupted(self.settings, self.folder)
        if checkpoint is None:
            return
        self.segmenter.load_state_dict(checkpoint.model)
        restore_optimizer(self.optimizer, checkpoint.optimizer)
        self.state, self.step = TrainState(**checkpoint.progress), checkpoint.step
        self.state.run_id = self.tracker.run_id

    def run(self) -> TrainResult:
        """All remaining steps."""
        options, resumed_at, began = self.settings.train, self.step, time.monotonic()
        before = self.state.seconds
        batches = train_loader(
            self.data,
            TrainTransform(
                options.crop_size,
                scale_range=(options.scale_min, options.scale_max),
                flip_probability=options.flip_probability,
            ),
            batch_size=options.batch_size,
            num_steps=options.steps,
            seed=options.seed,
            start_step=self.step,
            num_workers=self.settings.runtime.num_workers,
            factors=self._repeat_factors(),
        )
        title = f"train {self.settings.variant or ''}".strip()
        with StopRequest() as stop, Progress(title, options.steps, start=self.step) as progress:
            for batch in batches:
                losses, rate = self._optimise(batch)
                self.step += 1
                self.state.pending_loss += losses.cross_entropy
                self.state.pending_steps += 1
                self.state.seconds = before + time.monotonic() - began
                self._after_step(losses, rate)
                progress.advance(f"loss {losses.cross_entropy:.3f}")
                if stop.signal_number is not None:
                    self._save_last()
                    stop.check()
        self.state.finished = True
        self._save_last()
        seconds = max(time.monotonic() - began, 1e-9)
        return TrainResult(
            checkpoint=self.best,
            state=self.state,
            steps=self.step,
            images_per_second=(self.step - resumed_at) * options.batch_size / seconds,
            peak_memory_kind=self.memory.kind,
            device=str(self.device),
        )

    def _repeat_factors(self) -> np.ndarray | None:
        threshold = self.settings.train.repeat_threshold
        if threshold is None:
            return None
        return repeat_factors(self.data.class_presence(), self.label_space.num_classes, threshold)

    def _optimise(self, batch: Batch) -> tuple[_Scalars, float]:
        options = self.settings.train
        rate = set_learning_rate(self.optimizer, options, self.step)
        seed = options.seed * 1_000_003 + self.step
        torch.manual_seed(seed)  # dropout and stochastic depth, the same after a resume
        generator = torch.Generator(self.device).manual_seed(seed)
        images = batch.images.to(self.device, non_blocking=True).float() / 255
        target = batch.target.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            output = self.segmenter(images)
        losses = segmentation_losses(self.segmenter, output, target, self.settings.loss, generator)
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        if options.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.segmenter.parameters(), options.gradient_clip)
        self.optimizer.step()
        return self._checked(losses, batch), rate

    def _checked(self, losses: Losses, batch: Batch) -> _Scalars:
        scalars = _Scalars(*(float(value) for value in (losses.cross_entropy, losses.separation)))
        if not math.isfinite(scalars.cross_entropy + scalars.separation):
            raise Problem(
                "the loss is no longer finite",
                where=f"step {self.step}, images {', '.join(str(i) for i in batch.image_ids)}",
                found=scalars.cross_entropy,
                mend="lower train.learning_rate, or raise loss.temperature; earlier checkpoints are kept",
            )
        return scalars

    def _after_step(self, losses: _Scalars, rate: float) -> None:
        options, last = self.settings.train, self.step == self.settings.train.steps
        if self.step % max(1, options.steps // 200) == 0 or last:
            self._log_losses(losses, rate)
        if self.step % options.validate_every == 0 or last:
            self._validate()
        if self.step % options.checkpoint_every == 0 and not last:
            self._save_last()

    def _log_losses(self, losses: _Scalars, rate: float) -> None:
        mean = self.state.pending_loss / self.state.pending_steps
        self.state.pending_loss, self.state.pending_steps = 0.0, 0
        self.state.loss_curve.append([self.step, mean])
        values = {"loss": mean, "separation": losses.separation, "learning_rate": rate}
        self.tracker.log_metrics({f"train/{name}": value for name, value in values.items()}, self.step)

    def _validate(self) -> None:
        result = evaluate(
            self.segmenter,
            evaluation_loader(self.holdout, num_workers=0),
            frequencies=self.label_space.frequencies,
            device=self.device,
            title="held-out part",
            total=len(self.holdout),
        ).metrics
        self.state.peak_memory_gib = max(self.state.peak_memory_gib, self.memory.gib())
        self.state.validation_curve.append([self.step, result.miou, result.pixel_accuracy])
        values = {"miou": result.miou, "pixel_accuracy": result.pixel_accuracy}
        self.tracker.log_metrics({f"holdout/{name}": value for name, value in values.items()}, self.step)
        if result.miou >= self.state.best_miou:
            self.state.best_miou, self.state.best_step = result.miou, self.step
            self._checkpoint().save(self.best)

    def _save_last(self) -> None:
        self.state.peak_memory_gib = max(self.state.peak_memory_gib, self.memory.gib())
        last, previous = self.folder / "last.safetensors", self.folder / "previous.safetensors"
        if last.exists():
            last.replace(previous)
        self._checkpoint(optimizer_tensors(self.optimizer)).save(last)
        if self.state.finished:
            previous.unlink(missing_ok=True)

    def _checkpoint(self, optimizer: dict[str, Tensor] | None = None) -> Checkpoint:
        return Checkpoint(
            arguments=self.arguments,
            label_space=self.label_space,
            settings=self.settings.flat(),
            step=self.step,
            progress=dataclasses.asdict(self.state),
            model=self.segmenter.state_dict(),
            optimizer=optimizer or {},
        )


@dataclass(frozen=True)
class _Scalars:
    cross_entropy: float
    separation: float
