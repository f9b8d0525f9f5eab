"""Training: settings in, the best checkpoint and its curves out.

Everything random is a function of the seed and the step (data order, augmentation, drawn negatives,
dropout), and all else that a step depends on is in the checkpoint (weights, optimizer, loss scale, moving
average), so a killed run that resumes computes what it would have computed. The checkpoint to report is
chosen on the held-out part of train, never on val. A step itself is in `pipeline.train_step.step`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from pipeline.checkpoint.format import Checkpoint, optimizer_tensors, restore_optimizer
from pipeline.checkpoint.run_folder import RunFolder
from pipeline.config.paths import bootstrapped_folder, checkpoint_folder
from pipeline.config.schema import Settings
from pipeline.data.loading.batch import Batch
from pipeline.data.loading.dataset import SegmentationDataset
from pipeline.data.loading.loaders import evaluation_loader, train_loader
from pipeline.data.loading.sampler import repeat_factors
from pipeline.data.loading.transforms import TrainTransform
from pipeline.evaluation.evaluate import evaluate
from pipeline.memory.batch_size import find_accumulation
from pipeline.runtime.device import PeakMemory, choose_device, set_threads
from pipeline.runtime.errors import DataError
from pipeline.runtime.progress import Progress
from pipeline.runtime.signals import GracefulStop
from pipeline.tracking.environment import environment
from pipeline.tracking.tracker import Tracker
from pipeline.train_step.model import build_model, segmenter_config
from pipeline.train_step.precision import arithmetic
from pipeline.train_step.step import TrainStep
from pipeline.training.debug import batches_to_take, images_to_validate, steps_to_take, traced
from pipeline.training.early_save import EarlySave
from pipeline.training.state import DataWait, PendingLosses, TrainState

WORTH_WORKERS = 500
"""Held-out images from which on worker processes read them: those take seconds to start."""


@dataclass(frozen=True)
class TrainResult:
    """Where the best checkpoint is, and how it came about."""

    checkpoint: Path
    state: TrainState
    steps: int
    images_per_second: float
    peak_memory_kind: str
    device: str
    accumulation_steps: int = 1
    """parts into which the images of a step were divided"""


def interrupted_state(settings: Settings) -> TrainState | None:
    """The state of an unfinished run under these very settings, or None."""
    checkpoint = RunFolder(checkpoint_folder(settings)).interrupted(settings, header_only=True)
    return None if checkpoint is None else TrainState.from_progress(checkpoint.progress)


def train(settings: Settings, tracker: Tracker, *, folder: Path | None = None) -> TrainResult:
    """Trains one model, resuming where a killed run under the same settings stopped.

    Args:
        settings: one variant's.
        tracker: receives the parameters, the environment and the curves.
        folder: for the checkpoints; by default `checkpoint_folder(settings)`. It is this process's alone.

    Raises:
        DataError: nothing bootstrapped, unreadable data.
        UsageError: settings that this device cannot follow.
        MemoryLimitError: `batch_size: auto` where not even one image fits.
        KilosegError: the loss or the weights are no longer finite; another process trains into the folder.
        OSError: a checkpoint cannot be written; the one before is kept.
    """
    device, threads = choose_device(settings.runtime.device), set_threads(settings.runtime.threads)
    into = RunFolder(folder or checkpoint_folder(settings))
    with into.locked(), arithmetic(settings.train, device):
        training = Trainer(settings, tracker, into, device)
        facts = environment(settings, device, threads)
        tracker.log_params(settings.flat() | {f"environment.{name}": fact for name, fact in facts.items()})
        return training.run()


class _Stopped(Exception):
    """A stop was asked for during a validation, which will be done again after resuming."""


class Trainer:
    """One run: model, optimizer, data and state, with the loop over the steps."""

    def __init__(self, settings: Settings, tracker: Tracker, folder: RunFolder, device: torch.device) -> None:
        self.settings, self.tracker, self.folder, self.device = settings, tracker, folder, device
        self.memory = PeakMemory(device)
        self.data = SegmentationDataset(bootstrapped_folder(settings), settings.data.root, "train")
        self.holdout = SegmentationDataset(bootstrapped_folder(settings), settings.data.root, "holdout")
        if not len(self.data) or not len(self.holdout):
            raise DataError(
                "too few images to train",
                where=bootstrapped_folder(settings),
                found=f"{len(self.data)} train and {len(self.holdout)} held-out images",
                allowed="at least one of each",
                hint="add images, or change data.holdout_fraction, and run dvc repro",
            )
        self.label_space = self.data.label_space
        self.last_step = steps_to_take(settings.train)
        self.stop = GracefulStop()
        folder.remove_leftovers()
        checkpoint = folder.interrupted(settings)
        self.state = TrainState() if checkpoint is None else TrainState.from_progress(checkpoint.progress)
        self.state.run_id = tracker.run_id
        self.step = 0 if checkpoint is None else checkpoint.step
        self.resumed_at = self.step
        self.accumulation_steps = self._accumulation()
        self.losses, self.wait = PendingLosses(self.state), DataWait(self.state)
        self._build(checkpoint)

    def _accumulation(self) -> int:
        if self.settings.train.batch_size != "auto":
            return self.settings.train.accumulation_steps
        if self.state.accumulation_steps is None:
            self.state.accumulation_steps = find_accumulation(
                self.settings, self.label_space.num_classes, self.device
            )
        return self.state.accumulation_steps

    def _build(self, checkpoint: Checkpoint | None) -> None:
        settings = self.settings
        torch.manual_seed(settings.train.seed)
        self.arguments = segmenter_config(settings.model, self.label_space.num_classes)
        self.segmenter = build_model(settings.model, self.label_space.num_classes).to(self.device).train()
        if settings.train.freeze_backbone:
            self.segmenter.freeze_backbone()
        self.early_save = EarlySave(self.segmenter, self._save_last, self.stop)
        self.optimization = TrainStep(
            self.segmenter,
            settings,
            accumulation_steps=self.accumulation_steps,
            before_update=self.early_save.before_update,
        )
        if checkpoint is None:
            return
        self.segmenter.load_state_dict(checkpoint.model)
        restore_optimizer(self.optimization.optimizer, checkpoint.optimizer)
        if self.optimization.average is not None:
            self.optimization.average.segmenter.load_state_dict(checkpoint.average)
        if self.state.scale is not None:
            self.optimization.scaler.load_state_dict(self.state.scale)

    def run(self) -> TrainResult:
        """All remaining steps."""
        began, before = time.monotonic(), self.state.seconds
        title = f"train {self.settings.variant or ''}".strip()
        progress = Progress(title, self.last_step, start=self.step)
        with (
            self.stop,
            self.early_save,
            progress,
            traced(self.settings.train, self.folder.trace) as step_done,
        ):
            if self.step == 0:
                self._save_last()  # killed before the next one, it still goes on in the same tracked run
            self._validate_if_due()  # where it was stopped, or killed, before that was done
            self.early_save.between_steps()
            for batch in self.wait.timed(self._batches()):
                losses = self.optimization.step(batch, self.step)
                self.step += 1
                self.losses.add(self.step, losses, batch.image_ids)
                self.state.seconds = before + time.monotonic() - began
                self._after_step()
                step_done()
                progress.advance(self._note)
                if self.stop.signal_number is not None:
                    self._save_last()
                    self.stop.check()
                self.early_save.between_steps()
        self.state.finished = True
        self._save_last()
        seconds = max(time.monotonic() - began, 1e-9)
        return TrainResult(
            checkpoint=self.folder.best,
            state=self.state,
            steps=self.step,
            images_per_second=(self.step - self.resumed_at) * self.settings.train.images_per_step / seconds,
            peak_memory_kind=self.memory.kind,
            device=str(self.device),
            accumulation_steps=self.accumulation_steps,
        )

    def _batches(self) -> Iterable[Batch]:
        options = self.settings.train
        batches = train_loader(
            self.data,
            TrainTransform(
                options.crop_size,
                scale_range=(options.scale_min, options.scale_max),
                flip_probability=options.flip_probability,
            ),
            batch_size=options.images_per_step,
            num_steps=self.last_step,
            seed=options.seed,
            start_step=0 if options.debug == "one_batch" else self.step,
            num_workers=self.settings.runtime.num_workers,
            factors=self._repeat_factors(),
        )
        return batches_to_take(batches, options, self.last_step - self.step)

    def _repeat_factors(self) -> np.ndarray | None:
        threshold = self.settings.train.repeat_threshold
        if threshold is None:
            return None
        return repeat_factors(self.data.class_presence(), self.label_space.num_classes, threshold)

    def _after_step(self) -> None:
        options, last = self.settings.train, self.step == self.last_step
        if self.step % max(1, options.steps // 200) == 0 or last:
            self._log_losses()
        with self.wait.aside():
            self._validate_if_due()
            if self.step % options.checkpoint_every == 0 and not last:
                self._save_last()

    def _log_losses(self) -> None:
        self.losses.read()
        state, last = self.state, self.losses.last
        assert last is not None
        mean = state.pending_loss / state.pending_steps
        state.pending_loss, state.pending_steps = 0.0, 0
        state.loss_curve.append([self.step, mean])
        values = {
            "loss": mean,
            "separation": last.separation,
            "learning_rate": last.learning_rate,
            "images_per_second": self._images_per_second(),
            "data_wait_share": state.data_wait_share,
        }
        self.tracker.log_metrics({f"train/{name}": value for name, value in values.items()}, self.step)

    def _images_per_second(self) -> float:
        """Of all steps so far, validations and checkpoints left out."""
        images = self.step * self.settings.train.images_per_step
        return images / max(self.state.stepping_seconds, 1e-9) if self.state.stepping_seconds else 0.0

    def _note(self) -> str:
        """For the progress: of the loss and the rate what was read last, which waits for nothing."""
        last = self.losses.last
        return (
            ""
            if last is None
            else (
                f"loss {last.cross_entropy:.3f}, rate {last.learning_rate:.2g}, "
                f"{self._images_per_second():.1f} images/s, {self.memory.gib():.1f} GiB, "
                f"waiting for data {self.state.data_wait_share:.0%}"
            )
        )

    def _validate_if_due(self) -> None:
        """Judges the model every `validate_every` steps and at the end, and keeps it if it is the best."""
        state = self.state
        due = self.step > 0 and (
            self.step % self.settings.train.validate_every == 0 or self.step == self.last_step
        )
        done = state.validation_curve[-1][0] if state.validation_curve else 0
        if not due or done == self.step:
            return
        self._check_finite()
        try:
            miou, pixel_accuracy = self._validate()
        except _Stopped:
            self._save_last()
            self.stop.check()
        state.peak_memory_gib = max(state.peak_memory_gib, self.memory.gib())
        state.validation_curve.append([self.step, miou, pixel_accuracy])
        self.tracker.log_metrics({"holdout/miou": miou, "holdout/pixel_accuracy": pixel_accuracy}, self.step)
        if miou >= state.best_miou:
            state.best_miou, state.best_step = miou, self.step
            self._checkpoint(best=True).save(self.folder.best)

    def _validate(self) -> tuple[float, float]:
        limit = images_to_validate(self.settings.train)
        total = len(self.holdout) if limit is None else min(limit, len(self.holdout))
        workers = self.settings.runtime.num_workers if total >= WORTH_WORKERS else 0
        result = evaluate(
            self.optimization.eval_model,
            evaluation_loader(self.holdout, num_workers=workers, limit=limit),
            frequencies=self.label_space.frequencies,
            device=self.device,
            title="held-out part",
            total=total,
            on_prediction=self._leave_if_stopped,
        ).metrics
        return result.miou, result.pixel_accuracy

    def _leave_if_stopped(self, *prediction: object) -> None:
        if self.stop.signal_number is not None:
            raise _Stopped

    def _check_finite(self) -> None:
        """Before anything is validated or saved: a checkpoint must be one to go on from."""
        self.losses.read()
        if not self.optimization.weights_are_finite():
            raise self.losses.not_finite("the weights are no longer finite", self.step, "NaN or infinity")

    def _save_last(self, buffers: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        """Saves what to resume from; `buffers` are those of the network before the step at hand."""
        self._check_finite()
        self.state.peak_memory_gib = max(self.state.peak_memory_gib, self.memory.gib())
        self.state.scale = self.optimization.scale_state()
        checkpoint = self._checkpoint()
        self.folder.save_last(dataclasses.replace(checkpoint, model={**checkpoint.model, **buffers}))

    def _checkpoint(self, *, best: bool = False) -> Checkpoint:
        """What to resume from, or the weights alone that are validated."""
        optimization = self.optimization
        average = {} if optimization.average is None else optimization.average.segmenter.state_dict()
        return Checkpoint(
            arguments=self.arguments,
            label_space=self.label_space,
            settings=self.settings.flat(),
            step=self.step,
            progress=dataclasses.asdict(self.state),
            model=(optimization.eval_model if best else self.segmenter).state_dict(),
            optimizer={} if best else optimizer_tensors(optimization.optimizer),
            average={} if best else average,
        )
