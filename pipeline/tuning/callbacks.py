"""A Ray Tune callback that notes in the sweep what becomes of its trials, and says it."""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune

from pipeline.tuning.sweep import Plan, Sweep, TrialRecord, predicted_gib


class Watcher(tune.Callback):
    """Keeps the records of a sweep.

    Args:
        sweep: whose records.
        plan: its plan.
        cut: Ray's ids of the trials that ASHA has ended, filled by the scheduler.
    """

    def __init__(self, sweep: Sweep, plan: Plan, cut: set[str]) -> None:
        self.sweep, self.plan, self.cut = sweep, plan, cut

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Running, unless what is started again had ended."""
        record = self.sweep.record(trial.config["trial"])
        if not record.done:
            self.sweep.write(replace(record, outcome="running", error=None))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """What the trial wrote itself, or pruned, or stopped because the time is up."""
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
        say(self.sweep, self.plan, record)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its process or machine died."""
        told = f"trial {trial.config['trial']}: {last_word(trial)} It goes on from its checkpoint."
        print(told, file=sys.stderr, flush=True)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its process or machine died once too often."""
        record = self.sweep.record(trial.config["trial"])
        if not record.done:
            record = lost(self.sweep, record, last_word(trial))
            self.sweep.write(record)
        say(self.sweep, self.plan, record)


# MERGED from pipeline.tuning.mortality: Trials that lose their process: what Ray says of it, and what it makes of the trial.

RESTARTS = 3
LOW_MEMORY = "running low on memory"
"""Ray's words for a process that it ended to keep the machine alive."""


def last_word(trial: Any) -> str:
    """What Ray says of the last death of a trial's process or machine, in a line."""
    path = Path(trial.error_file or "")
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = [line.strip() for line in text.rpartition("Failure #")[2].splitlines()[1:] if line.strip()]
    if not lines:
        return "its process or machine died."
    return lines[-1] if lines[0].startswith("ray::") else lines[0]  # a traceback's reason is its last line


def lost(sweep: Sweep, record: TrialRecord, word: str) -> TrialRecord:
    """The record of a trial that has died too often, with Ray's last word on it."""
    record = replace(record, outcome="failed", error=f"died {RESTARTS + 1} times: {word}")
    if LOW_MEMORY not in word:
        return record
    need = predicted_gib(sweep.trial_folder(record.number))
    metrics = {} if need is None else {"predicted_memory_gib": need}
    return replace(record, outcome="infeasible", score=0.0, metrics=metrics)


def note_low_memory(sweep: Sweep, plan: Plan, told: str, deaths: Counter[int]) -> None:
    """Notes whose processes Ray ended for want of memory, where Ray Tune itself ended over it.

    Args:
        sweep: whose trials.
        plan: its plan.
        told: Ray's account.
        deaths: of each trial so far; counted up.
    """
    pids = re.findall(
        r"\bpid=(\d+)", told.partition("Selected to kill")[2].partition("Total non-selected")[0]
    )
    running = [record for record in sweep.records() if record.outcome == "running"]
    hit = [record for record in running if _pid(sweep, record) in pids] or running
    for record in hit:
        deaths[record.number] += 1
        if deaths[record.number] > RESTARTS:
            record = lost(sweep, record, LOW_MEMORY)
            sweep.write(record)
            say(sweep, plan, record)
        else:
            word = "its machine ran low on memory; it goes on from its checkpoint"
            print(f"trial {record.number}: {word}", file=sys.stderr, flush=True)


def _pid(sweep: Sweep, record: TrialRecord) -> str:
    path = sweep.trial_folder(record.number) / ".lock"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def say(sweep: Sweep, plan: Plan, record: TrialRecord) -> None:
    """One line on how a trial ended."""
    done = sum(other.done for other in sweep.records())
    values = ", ".join(f"{key} {value}" for key, value in record.values.items())
    score = "" if record.score is None else f", mIoU {100 * record.score:.2f} %"
    told = f"trial {record.number} ({values}): {record.outcome}{score}; {done} of {plan.trials} done"
    print(told, file=sys.stderr, flush=True)
