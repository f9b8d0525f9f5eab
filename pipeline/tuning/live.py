"""Show how the trials of a sweep are doing: a table on a terminal, else one line a running trial a minute.

Read from the sweep's files, so that it shows trials on all machines.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.runtime.progress import duration
from pipeline.tuning.sweep import Sweep, SweepPlan, TrialRecord, read_journal, trial_settings

_REFRESH_SECONDS, _LOG_SECONDS = 1.0, 60.0
_RECENT = 10  # losses by which the speed is told
_ROWS = 20  # of the table; trials that ended long ago are left out


@dataclass(frozen=True)
class TrialState:
    """Say how far a trial is.

    Attributes:
        number: of the trial.
        values: of the swept settings that its training uses, by dotted key.
        outcome: as in its record.
        step: the last one logged.
        steps: that it takes.
        loss: the last one logged; None before.
        miou: the best on the held-out part, or the final one; None before.
        seconds_left: of the training, by its recent speed; None where that is not known.
    """

    number: int
    values: Mapping[str, Any]
    outcome: str
    step: int
    steps: int
    loss: float | None
    miou: float | None
    seconds_left: float | None


def trial_states(sweep: Sweep, plan: SweepPlan) -> list[TrialState]:
    """Read the state of every trial that was proposed so far."""
    return [_state(sweep, plan, record) for record in sweep.records()]


def _state(sweep: Sweep, plan: SweepPlan, record: TrialRecord) -> TrialState:
    events = read_journal(sweep.trial_folder(record.number) / "metrics.jsonl")
    losses = [event for event in events if "train/loss" in event["metrics"]]
    scores = [event["metrics"]["holdout/miou"] for event in events if "holdout/miou" in event["metrics"]]
    steps = trial_settings(plan, record.values).train.steps
    step = max((event["step"] for event in events), default=record.step)
    return TrialState(
        record.number,
        plan.used(record.values),
        record.outcome,
        step,
        steps,
        losses[-1]["metrics"]["train/loss"] if losses else None,
        record.score if record.done else max(scores, default=None),
        None if record.done else _seconds_left(losses[-_RECENT:], steps),
    )


def _seconds_left(losses: list[dict[str, Any]], steps: int) -> float | None:
    if len(losses) < 2 or "time" not in losses[0] or losses[-1]["step"] <= losses[0]["step"]:
        return None
    seconds = (losses[-1]["time"] - losses[0]["time"]) / 1000
    rate = seconds / (losses[-1]["step"] - losses[0]["step"])
    return rate * max(steps - losses[-1]["step"], 0)


def line(state: TrialState) -> str:
    """Word the state of a trial for a log."""
    values = ", ".join(f"{key} {value}" for key, value in state.values.items())
    known = [f"step {state.step}/{state.steps}"]
    known += [] if state.loss is None else [f"loss {state.loss:.3f}"]
    known += [] if state.miou is None else [f"mIoU {100 * state.miou:.2f} %"]
    known += [] if state.seconds_left is None else [f"{duration(state.seconds_left)} left"]
    return f"trial {state.number} ({values}): {', '.join(known)}"


def table(states: list[TrialState], plan: SweepPlan) -> Any:
    """Return the states as a table of rich: those that run first, then the latest to end."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    done = sum(state.outcome != "running" and state.outcome != "waiting" for state in states)
    found = Table(title=f"sweep {plan.name}: {done} of {plan.trials} done", box=SIMPLE_HEAD, padding=0)
    for column in (
        "trial",
        *(key.rpartition(".")[2] for key in plan.space),
        "step",
        "loss",
        "mIoU, %",
        "left",
    ):
        found.add_column(column, justify="right", no_wrap=True)
    found.add_column("outcome", no_wrap=True)
    for state in sorted(states, key=lambda state: (state.outcome != "running", -state.number))[:_ROWS]:
        found.add_row(
            str(state.number),
            *(_short(state.values.get(key, "")) for key in plan.space),
            f"{state.step}/{state.steps}",
            "" if state.loss is None else f"{state.loss:.3f}",
            "" if state.miou is None else f"{100 * state.miou:.2f}",
            "" if state.seconds_left is None else duration(state.seconds_left),
            state.outcome,
        )
    return found


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def shown(sweep: Sweep, plan: SweepPlan, *, seconds: float = _LOG_SECONDS) -> Iterator[None]:
    """Show the trials on stderr while the block runs.

    Args:
        sweep: whose trials.
        plan: its plan.
        seconds: between two lines about a trial where stderr is no terminal.
    """
    ended = threading.Event()
    show = _in_a_table if sys.stderr.isatty() else _in_lines
    thread = threading.Thread(target=show, args=(sweep, plan, ended, seconds), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _in_lines(sweep: Sweep, plan: SweepPlan, ended: threading.Event, seconds: float) -> None:
    while not ended.wait(seconds):
        for state in _states_or_none(sweep, plan):
            if state.outcome == "running":
                print(line(state), file=sys.stderr, flush=True)


def _in_a_table(sweep: Sweep, plan: SweepPlan, ended: threading.Event, seconds: float) -> None:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        while not ended.wait(_REFRESH_SECONDS):
            states = _states_or_none(sweep, plan)
            if states:
                live.update(table(states, plan), refresh=True)


def _states_or_none(sweep: Sweep, plan: SweepPlan) -> list[TrialState]:
    """Read the states; nothing about files that are being written or gone, as what is shown is no result."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return trial_states(sweep, plan)
    return []
