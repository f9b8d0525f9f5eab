"""Trials that lose their process: what Ray says of it, and what it makes of the trial.

A process that dies is started again from the trial's checkpoint, RESTARTS times. So is one that Ray ends
because its machine runs low on memory; if that does not help, the trial counts as infeasible.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.tuning.sweep import Plan, Sweep, TrialRecord
from pipeline.tuning.trial_files import predicted_gib

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
