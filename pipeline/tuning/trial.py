"""Run one trial in its own process: the train stage's training and the evaluate stage's evaluation.

It needs neither MLflow nor DVC and writes only into its folder. A trial that starts again, on any machine,
resumes from what the folder holds.
"""

from __future__ import annotations

import json
import socket
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.checkpoint.format import Checkpoint, load_checkpoint
from pipeline.checkpoint.identity import Identity
from pipeline.checkpoint.run_folder import RunFolder
from pipeline.checkpoint.unfinished import is_finished
from pipeline.config.load import with_overrides
from pipeline.config.paths import label_space_file
from pipeline.config.schema import Settings
from pipeline.evaluation.outputs import evaluate_checkpoint
from pipeline.runtime.device import GIB, PeakMemory, choose_device, is_out_of_memory, set_threads
from pipeline.runtime.errors import DataError, KilosegError, MemoryLimitError
from pipeline.runtime.files import write_json
from pipeline.runtime.locks import locked
from pipeline.tracking.journal import append_events, milliseconds
from pipeline.training.trainer import train
from pipeline.tuning.sweep import (
    Sweep,
    SweepPlan,
    TrialRecord,
    predicted_gib,
    read_journal,
    trial_settings,
    write_result,
)

Report = Callable[[dict[str, Any]], None]
_PATIENCE_SECONDS = 120.0  # until an earlier process of this trial is gone


def run_trial(config: Mapping[str, Any], *, folder: str, runtime: Mapping[str, Any], report: Report) -> None:
    """Train and evaluate one trial, or resume it.

    Args:
        config: {"trial": number}.
        folder: the sweep's.
        runtime: overrides of the runtime section, by dotted key: this trial's share of its machine.
        report: called with "step", "score" and "peak_memory_gib" at each validation, and with "final": True
            at the end. It may stop the trial by raising SystemExit.

    Raises:
        KilosegError: the sweep's folder is not on this machine, or another process has the trial.
    """
    sweep, number = Sweep(Path(folder)), int(config["trial"])
    place = sweep.trial_folder(number)
    if not place.is_dir():
        raise KilosegError(
            "the sweep is not on this machine",
            where=f"{socket.gethostname()}: {place}",
            hint="tune.folder and the data must lie on storage that all machines share: docs/cluster.md",
        )
    with locked(place / ".lock", wait_seconds=_PATIENCE_SECONDS, holder=f"another process of trial {number}"):
        record = sweep.record(number)
        if not record.done:
            settings = with_overrides(trial_settings(sweep.plan, record.values), runtime)
            record = _attempt(record, sweep.plan, settings, place, report)
            write_result(place, record)
            for leftover in ("last", "previous", "chosen"):
                (place / f"{leftover}.safetensors").unlink(missing_ok=True)
    report(_final(record))


def _final(record: TrialRecord) -> dict[str, Any]:
    return {
        "step": record.step,
        "score": record.score or 0.0,
        "peak_memory_gib": record.memory_gib or 0.0,
        "outcome": record.outcome,
        "final": True,
    }


def _attempt(
    record: TrialRecord, plan: SweepPlan, settings: Settings, place: Path, report: Report
) -> TrialRecord:
    """Train and evaluate. A permanent failure becomes the trial's outcome and does not crash the sweep."""

    def ended(outcome: str, error: str | None, score: float | None = None) -> TrialRecord:
        predicted = predicted_gib(place)
        known = {} if predicted is None else {"predicted_memory_gib": predicted}
        return TrialRecord(record.number, record.values, outcome, score, known, tracker.step, error)

    tracker = TrialTracker(place, settings.train.steps, plan.memory_kind, report)
    try:
        predicted = _predict(settings, place)
        if plan.memory_budget_gib is not None and predicted > plan.memory_budget_gib:
            return ended(
                "infeasible",
                f"predicted to need {predicted:.2f} GiB of {plan.memory_budget_gib:.2f} GiB",
                0.0,
            )
        tracker.peak_memory_gib = predicted
        return _train_and_evaluate(record, plan, settings, place, tracker)
    except MemoryLimitError as problem:
        return ended("infeasible", str(problem), 0.0)
    except KilosegError as problem:
        return ended("failed", str(problem))
    except Exception as error:
        if is_out_of_memory(error):
            return ended("infeasible", str(error).partition("\n")[0] or "out of memory", 0.0)
        (place / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        return ended("failed", f"{type(error).__name__}: {error}")


def _train_and_evaluate(
    record: TrialRecord, plan: SweepPlan, settings: Settings, place: Path, tracker: TrialTracker
) -> TrialRecord:
    # an earlier process may have been killed between training and evaluation
    if not is_finished(RunFolder(place), Identity.of(settings)):
        train(settings, tracker, folder=place)
    progress = load_checkpoint(place / "last.safetensors", header_only=True).progress
    metrics = _evaluate(settings, load_checkpoint(place / "best.safetensors"))
    predicted = _predict(settings, place)
    cuda = plan.memory_kind == "cuda_allocator"  # a CPU process runs many trials: its peak is not one trial's
    if progress["best_miou"] is not None:
        metrics["holdout/miou"] = float(progress["best_miou"])
    if plan.objectives[0] not in metrics:
        raise DataError(
            "the objective cannot be measured",
            where=plan.objectives[0],
            found="null: no labeled pixel in the split, or one class only to learn",
            hint="run pipeline data check ROOT, or label the split, and bootstrap again",
        )
    metrics |= {
        "predicted_memory_gib": predicted,
        "peak_memory_gib": float(progress["peak_memory_gib"]) if cuda else predicted,
        "train_seconds": float(progress["seconds"]),
    }
    step = settings.train.steps
    return TrialRecord(record.number, record.values, "finished", metrics[plan.objectives[0]], metrics, step)


def _evaluate(settings: Settings, checkpoint: Checkpoint) -> dict[str, float]:
    """Compute the metrics on val as the evaluate stage does."""
    device = choose_device(settings.runtime.device)
    set_threads(settings.runtime.threads, deterministic=settings.train.deterministic, device=device)
    memory = PeakMemory(device)
    result, _ = evaluate_checkpoint(settings, checkpoint, checkpoint.segmenter().to(device), "val")
    flat = result.metrics.flat()
    metrics = {f"val/{name}": float(value) for name, value in flat.items() if value is not None}
    if memory.kind == "cuda_allocator":
        metrics["val/peak_memory_gib"] = memory.gib()
    return metrics


def _predict(settings: Settings, place: Path) -> float:
    """Return the predicted peak memory of a training step, GiB; computed once per trial."""
    known = predicted_gib(place)
    if known is not None:
        return known
    from pipeline.data.labels.label_space import LabelSpace
    from pipeline.memory.batch_size import find_accumulation
    from pipeline.memory.predict import predict_bytes, with_changes

    num_classes = LabelSpace.load(label_space_file(settings)).num_classes
    if settings.train.batch_size == "auto":
        parts = find_accumulation(settings, num_classes, choose_device(settings.runtime.device))
        settings = with_changes(settings, train={"accumulation_steps": parts})
    value = predict_bytes(settings, num_classes) / GIB
    write_json(place / "predicted.json", value)
    return value


class TrialTracker:
    """Append a training's numbers to metrics.jsonl and report its validations: a `Tracker`.

    A resumed training repeats the steps after its checkpoint; each number of each step is kept once.
    """

    run_id: str | None = None

    def __init__(self, place: Path, steps: int, memory_kind: str, report: Report) -> None:
        self.path, self.steps, self.report = place / "metrics.jsonl", steps, report
        self.memory_kind, self.peak_memory_gib = memory_kind, 0.0
        self.step, self.best = 0, 0.0
        self._last: dict[str, int] = {}
        for event in read_journal(self.path):
            self._note(event["metrics"], event["step"])

    def log_params(self, params: Mapping[str, object]) -> None:
        """Do nothing: plan and values hold them."""

    def log_artifact(self, path: Path) -> None:
        """Do nothing: the trial's files stay where they are."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Append the numbers; report every validation but the last, which `run_trial` reports."""
        fresh = {name: float(value) for name, value in metrics.items() if step > self._last.get(name, -1)}
        if fresh:
            event = {"step": step, "time": milliseconds(), "metrics": fresh}
            append_events(self.path, [json.dumps(event)])
        self._note(fresh, step)
        if "holdout/miou" in metrics and step < self.steps:
            self.report(
                {
                    "step": step,
                    "score": self.best,
                    "peak_memory_gib": self._peak(),
                    "outcome": "running",
                    "final": False,
                }
            )

    def _peak(self) -> float:
        if self.memory_kind == "cuda_allocator":
            import torch

            return torch.cuda.max_memory_allocated() / GIB
        return self.peak_memory_gib

    def _note(self, metrics: Mapping[str, float], step: int) -> None:
        self.step = max(self.step, step)
        self._last |= dict.fromkeys(metrics, step)
        self.best = max(self.best, metrics.get("holdout/miou", 0.0))
