"""Train a model from its settings; leave the best checkpoint and the curves.

A killed run that resumes computes what it would have computed. Everything random (data order, augmentation,
drawn negatives, dropout) is a function of the seed and the step; all else that a step depends on (weights,
optimizer, loss scale, EMA) is in the checkpoint. The best checkpoint is chosen on the held-out part of train,
never on val. A step itself is in `pipeline.train_step.step`.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from models.implementation import implementation_on
from models.segmenter import Segmenter
from pipeline.checkpoint.format import Checkpoint, optimizer_tensors, restore_optimizer
from pipeline.checkpoint.identity import Identity
from pipeline.checkpoint.run_folder import RunFolder
from pipeline.checkpoint.starting import is_checkpoint, start_from
from pipeline.checkpoint.unfinished import find_unfinished, start
from pipeline.config.schema import Settings
from pipeline.evaluation.evaluate import evaluate
from pipeline.memory.batch_size import find_accumulation
from pipeline.runtime.device import PeakMemory, choose_device, processor_name, set_threads
from pipeline.runtime.progress import Progress
from pipeline.runtime.signals import GracefulStop
from pipeline.tracking.environment import collect_environment
from pipeline.tracking.tracker import Tracker
from pipeline.train_step.model import build_model, segmenter_config
from pipeline.train_step.precision import numerics
from pipeline.train_step.step import TrainStep
from pipeline.training.data import TrainingData
from pipeline.training.debug import steps_to_take, traced, training_folder
from pipeline.training.early_save import EarlySave
from pipeline.training.log import TrainingLog
from pipeline.training.state import DataWait, PendingLosses, TrainState


@dataclass(frozen=True)
class TrainResult:
    """Say where the best checkpoint is, and how it came about."""

    checkpoint: Path
    state: TrainState
    steps: int
    images_per_second: float | None
    """of this process; None if it took no step"""
    peak_memory_kind: str
    device: str
    accumulation_steps: int = 1
    """micro-batches into which the images of a step were divided"""


def resumable_state(settings: Settings) -> TrainState | None:
    """Return the state of the unfinished training that these settings and data identify, or None.

    Raises:
        DataError: nothing bootstrapped.
    """
    found = find_unfinished(RunFolder(training_folder(settings)), Identity.of(settings))
    return None if found is None else TrainState.from_progress(found[1].progress)


def train(settings: Settings, tracker: Tracker, *, folder: Path | None = None) -> TrainResult:
    """Train one model, going on where a killed run of the same training stopped.

    An unfinished training under other settings is set aside (`pipeline.checkpoint.unfinished`).

    Args:
        settings: one variant's.
        tracker: receives the parameters, the environment and the curves.
        folder: for the checkpoints; by default `training_folder(settings)`. It is this process's alone.

    Raises:
        DataError: nothing bootstrapped, unreadable data.
        UsageError: settings that this device cannot follow.
        MemoryLimitError: `batch_size: auto` where not even one image fits.
        KilosegError: the loss or the weights are no longer finite; another process trains into the folder.
        OSError: a checkpoint cannot be written; the one before is kept.
    """
    device = choose_device(settings.runtime.device)
    threads = set_threads(settings.runtime.threads, deterministic=settings.train.deterministic, device=device)
    into = RunFolder(folder or training_folder(settings))
    with into.locked(), numerics(settings.train, device):
        trainer = Trainer(settings, tracker, into, device, threads)
        facts = collect_environment(settings, device, threads, implementation_on)
        tracker.log_params(settings.flat() | {f"environment.{name}": fact for name, fact in facts.items()})
        return trainer.run()


class _ValidationStopped(Exception):
    """A stop was asked for during a validation, which will be done again after resuming."""


class Trainer:
    """Run one training: model, optimizer, data and state, with the loop over the steps."""

    def __init__(
        self, settings: Settings, tracker: Tracker, folder: RunFolder, device: torch.device, threads: int
    ) -> None:
        self.settings, self.tracker, self.main, self.device = settings, tracker, folder, device
        self.title = f"train {settings.variant or ''}".strip()
        self.memory, self.stop = PeakMemory(device), GracefulStop()
        self.data = TrainingData.open(settings)
        self.last_step = steps_to_take(settings.train)
        self.identity = Identity.of(settings)
        started = start(folder, self.identity, keep=settings.train.debug is None)
        self.folder, checkpoint = started.folder, started.checkpoint
        for one in (self.main, self.folder):
            one.remove_leftovers()
        self.state = TrainState() if checkpoint is None else TrainState.from_progress(checkpoint.progress)
        self.step = self.resumed_at = 0 if checkpoint is None else checkpoint.step
        self._go_on(threads)
        self.accumulation_steps = self._accumulation_steps()
        self.losses, self.wait = PendingLosses(self.state), DataWait(self.state)
        images_per_step = settings.train.images_per_step
        self.log = TrainingLog(tracker, self.state, self.losses, self.memory, images_per_step)
        self._build(checkpoint)

    def _go_on(self, threads: int) -> None:
        """Take up what an earlier process left; bring back a `best` that DVC has removed."""
        state, before, processor = self.state, self.state.threads, self.state.processor
        state.run_id, state.threads, state.processor = self.tracker.run_id, threads, processor_name()
        if self.step:
            self._say(f"going on from step {self.step} of {self.last_step}")
        if self.device.type == "cpu" and self.settings.runtime.threads == "auto":
            self._say(f"runtime.threads: auto is {threads} here; another number rounds sums otherwise")
        deterministic = self.settings.train.deterministic
        if before not in (None, threads) and self.device.type == "cpu" and not deterministic:
            self._say(f"on {threads} threads, {before} before: from here on numbers differ by rounding")
        if processor not in (None, state.processor) and self.device.type == "cpu":
            self._say(f"on {state.processor}, {processor} before: from here on numbers differ by rounding")
        if state.best_step and not self.folder.recover_chosen(state.best_step, self.identity):
            self._say(
                f"the best checkpoint, of step {state.best_step}, is gone; the next one validated is it"
            )
            state.best_step, state.best_miou = 0, None
        if self.folder == self.main or not self.main.best.exists():
            self.main.publish()

    def _say(self, text: str) -> None:
        print(f"{self.title}: {text}", file=sys.stderr, flush=True)

    def _accumulation_steps(self) -> int:
        if self.settings.train.batch_size != "auto":
            return self.settings.train.accumulation_steps
        if self.state.accumulation_steps is None:
            num_classes = self.data.label_space.num_classes
            self.state.accumulation_steps = find_accumulation(self.settings, num_classes, self.device)
        return self.state.accumulation_steps

    def _new_segmenter(self, *, resumes: bool) -> Segmenter:
        """Build the network; a checkpoint in `model.weights` gives all of it that fits, and says what."""
        model, space = self.settings.model, self.data.label_space
        if model.weights is None or not is_checkpoint(model.weights):
            return build_model(model, space.num_classes)
        segmenter = build_model(model.model_copy(update={"weights": None}), space.num_classes)
        if not resumes:
            taken = start_from(segmenter, space, model.weights, backbone=model.backbone)
            print(taken, file=sys.stderr, flush=True)
        return segmenter

    def _build(self, checkpoint: Checkpoint | None) -> None:
        settings, num_classes = self.settings, self.data.label_space.num_classes
        torch.manual_seed(settings.train.seed)
        self.config = segmenter_config(settings.model, num_classes)
        self.segmenter = self._new_segmenter(resumes=checkpoint is not None).to(self.device).train()
        if settings.train.freeze_backbone:
            self.segmenter.freeze_backbone()
        self.early_save = EarlySave(self.segmenter, self._save_last, self.stop)
        self.train_step = TrainStep(
            self.segmenter,
            settings,
            accumulation_steps=self.accumulation_steps,
            before_update=self.early_save.before_update,
            frequencies=self.data.frequencies(),
            threads=self.state.threads,
        )
        if checkpoint is None:
            return
        self.segmenter.load_state_dict(checkpoint.model)
        restore_optimizer(self.train_step.optimizer, checkpoint.optimizer)
        if self.train_step.average is not None:
            self.train_step.average.segmenter.load_state_dict(checkpoint.average)
        if self.state.scale is not None:
            self.train_step.scaler.load_state_dict(self.state.scale)

    def run(self) -> TrainResult:
        """Take all remaining steps."""
        began, before = time.monotonic(), self.state.seconds
        progress = Progress(self.title, self.last_step, start=self.step)
        with (
            self.stop,
            self.early_save,
            progress,
            traced(self.settings.train, self.main.trace) as step_done,
        ):
            if self.step == 0:
                self._save_last()  # killed before the next one, it still goes on in the same tracked run
            self._validate_if_due()  # where it was stopped, or killed, before that was done
            self.early_save.between_steps()
            batches = self.data.batches(start_step=self.step, last_step=self.last_step)
            for batch in self.wait.timed(batches):
                losses = self.train_step(batch, self.step)
                self.step += 1
                self.losses.add(self.step, losses, batch.image_ids)
                self.state.seconds = before + time.monotonic() - began
                self._after_step()
                step_done()
                progress.advance(lambda: self.log.note(self.step))
                if self.stop.signal_number is not None:
                    self._save_last()
                    self.stop.check()
                self.early_save.between_steps()
        self.state.finished = True
        self._save_last()
        seconds, taken = max(time.monotonic() - began, 1e-9), self.step - self.resumed_at
        return TrainResult(
            checkpoint=self.main.best,
            state=self.state,
            steps=self.step,
            images_per_second=taken * self.settings.train.images_per_step / seconds if taken else None,
            peak_memory_kind=self.memory.kind,
            device=str(self.device),
            accumulation_steps=self.accumulation_steps,
        )

    def _after_step(self) -> None:
        train, last = self.settings.train, self.step == self.last_step
        if self.step % max(1, train.steps // 200) == 0 or last:
            self.log.log_losses(self.step)
        with self.wait.aside():
            self._validate_if_due()
            if self.step % train.checkpoint_every == 0 and not last:
                self._save_last()

    def _validate_if_due(self) -> None:
        """Validate every `validate_every` steps and at the end; keep the model if it is the best."""
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
        except _ValidationStopped:
            self._save_last()
            self.stop.check()
        state.peak_memory_gib = max(state.peak_memory_gib, self.memory.gib())
        state.validation_curve.append([self.step, miou, pixel_accuracy])
        if miou is not None and pixel_accuracy is not None:
            measured = {"holdout/miou": miou, "holdout/pixel_accuracy": pixel_accuracy}
            self.tracker.log_metrics(measured, self.step)
        if miou is None or state.best_miou is None or miou >= state.best_miou:
            state.best_miou, state.best_step = miou, self.step
            self._checkpoint(best=True).save(self.folder.chosen)
        if self.folder != self.main:  # where a finished training lies, which may now be replaced
            self._save_last()
            self.main.take(self.folder)
            self.folder = self.main
        self.main.publish()

    def _validate(self) -> tuple[float | None, float | None]:
        batches, total = self.data.held_out()
        metrics = evaluate(
            self.train_step.eval_model,
            batches,
            frequencies=self.data.label_space.frequencies,
            device=self.device,
            title="held-out part",
            total=total,
            measurable=self.data.has_two_classes,
            on_prediction=self._leave_if_stopped,
        ).metrics
        return metrics.miou, metrics.pixel_accuracy

    def _leave_if_stopped(self, *prediction: object) -> None:
        if self.stop.signal_number is not None:
            raise _ValidationStopped

    def _check_finite(self) -> None:
        """Before anything is validated or saved: a checkpoint must be one to go on from."""
        self.losses.read()
        if not self.train_step.weights_are_finite():
            raise self.losses.not_finite("the weights are no longer finite", self.step, "NaN or infinity")

    def _save_last(self, buffers: Mapping[str, Tensor] = MappingProxyType({})) -> None:
        """Save what to resume from; `buffers` replace those of the network, which a step has changed."""
        self._check_finite()
        self.state.peak_memory_gib = max(self.state.peak_memory_gib, self.memory.gib())
        self.state.scale = self.train_step.scale_state()
        checkpoint = self._checkpoint()
        self.folder.save_last(dataclasses.replace(checkpoint, model={**checkpoint.model, **buffers}))

    def _checkpoint(self, *, best: bool = False) -> Checkpoint:
        """Return what to resume from; with `best`, only the weights that are validated."""
        train_step = self.train_step
        average = {} if train_step.average is None else train_step.average.segmenter.state_dict()
        return Checkpoint(
            arguments=self.config,
            label_space=self.data.label_space,
            settings=self.settings.flat(),
            step=self.step,
            progress=dataclasses.asdict(self.state),
            model=(train_step.eval_model if best else self.segmenter).state_dict(),
            optimizer={} if best else optimizer_tensors(train_step.optimizer),
            average={} if best else average,
            identity=self.identity.values,
        )
