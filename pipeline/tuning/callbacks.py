"""A Ray Tune callback that notes in the sweep what becomes of its trials, and says it."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from ray import tune

from pipeline.tuning.mortality import last_word, lost, say
from pipeline.tuning.sweep import Plan, Sweep


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
