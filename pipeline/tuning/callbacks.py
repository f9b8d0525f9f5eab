"""Record and print how trials end; handle trials whose process died.

A dead trial is restarted, marked failed, or marked infeasible when its machine ran low on memory.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune

from pipeline.tuning.sweep import Sweep, SweepPlan, TrialRecord, predicted_gib

RESTARTS = 3
LOW_MEMORY = "running low on memory"
"""Part of Ray's message about a process that it killed because the machine ran out of memory."""


class TrialRecorder(tune.Callback):
    """Update the records of a sweep as Ray Tune reports its trials.

    Args:
        sweep: the sweep whose records are written.
        plan: its plan.
        cut: Ray's ids of the trials that ASHA stopped, filled by the scheduler.
    """

    def __init__(self, sweep: Sweep, plan: SweepPlan, cut: set[str]) -> None:
        self.sweep, self.plan, self.cut = sweep, plan, cut

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Mark the trial as running, unless it is already done."""
        record = self.sweep.record(trial.config["trial"])
        if not record.done:
            self.sweep.write(replace(record, outcome="running", error=None))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep the trial's own result; else mark it pruned by ASHA, or stopped by the time limit."""
        record, last = self.sweep.record(trial.config["trial"]), trial.last_result or {}
        if not record.done and trial.trial_id not in self.cut:
            record = replace(record, outcome="stopped")
        elif not record.done:
            record = replace(
                record,
                outcome="pruned",
                score=last.get("score"),
                step=last.get("step", 0),
                metrics={"peak_memory_gib": last.get("peak_memory_gib", 0.0)},
            )
        self.sweep.write(record)
        log_outcome(self.sweep, self.plan, record)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print that the process or machine died and the trial restarts."""
        line = f"trial {trial.config['trial']}: {death_reason(trial)} It goes on from its checkpoint."
        print(line, file=sys.stderr, flush=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Mark the trial dead: its process or machine died once too often."""
        record = self.sweep.record(trial.config["trial"])
        if not record.done:
            record = mark_dead(self.sweep, record, death_reason(trial))
            self.sweep.write(record)
        log_outcome(self.sweep, self.plan, record)


def death_reason(trial: Any) -> str:
    """Return Ray's reason for the last death of the trial's process or machine, as one line."""
    path = Path(trial.error_file or "")
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = [line.strip() for line in text.rpartition("Failure #")[2].splitlines()[1:] if line.strip()]
    if not lines:
        return "its process or machine died."
    return lines[-1] if lines[0].startswith("ray::") else lines[0]  # a traceback's reason is its last line


def mark_dead(sweep: Sweep, record: TrialRecord, reason: str) -> TrialRecord:
    """Return the record of a trial that died too often: failed, or infeasible on low memory."""
    record = replace(record, outcome="failed", error=f"died {RESTARTS + 1} times: {reason}")
    if LOW_MEMORY not in reason:
        return record
    need = predicted_gib(sweep.trial_folder(record.number))
    metrics = {} if need is None else {"predicted_memory_gib": need}
    return replace(record, outcome="infeasible", score=0.0, metrics=metrics)


def note_low_memory(sweep: Sweep, plan: SweepPlan, message: str, deaths: Counter[int]) -> None:
    """Count the trials whose processes Ray killed on low memory, when Ray Tune itself ended over it.

    Args:
        sweep: whose trials.
        plan: its plan.
        message: Ray's error message.
        deaths: deaths of each trial so far; updated.
    """
    pids = re.findall(
        r"\bpid=(\d+)", message.partition("Selected to kill")[2].partition("Total non-selected")[0]
    )
    running = [record for record in sweep.records() if record.outcome == "running"]
    hit = [record for record in running if _pid(sweep, record) in pids] or running
    for record in hit:
        deaths[record.number] += 1
        if deaths[record.number] > RESTARTS:
            record = mark_dead(sweep, record, LOW_MEMORY)
            sweep.write(record)
            log_outcome(sweep, plan, record)
        else:
            reason = "its machine ran low on memory; it goes on from its checkpoint"
            print(f"trial {record.number}: {reason}", file=sys.stderr, flush=True)


def _pid(sweep: Sweep, record: TrialRecord) -> str:
    path = sweep.trial_folder(record.number) / ".lock"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def log_outcome(sweep: Sweep, plan: SweepPlan, record: TrialRecord) -> None:
    """Print how a trial ended, in one line."""
    done = sum(other.done for other in sweep.records())
    values = ", ".join(f"{key} {value}" for key, value in plan.used(record.values).items())
    score = "" if record.score is None else f", mIoU {100 * record.score:.2f} %"
    line = f"trial {record.number} ({values}): {record.outcome}{score}; {done} of {plan.trials} done"
    print(line, file=sys.stderr, flush=True)
