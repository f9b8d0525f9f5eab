"""What a sweep says while it runs: a table on a terminal, a line a trial a minute in a log."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import load_settings
from pipeline.tuning.live import line, shown, table, trial_states
from pipeline.tuning.sweep import Sweep, SweepPlan, TrialRecord


@pytest.fixture
def sweep(project: Path) -> Sweep:
    """One trial that runs, one that has ended, one that waits; training takes 8 steps."""
    settings = load_settings(variant="essnet").model_dump(mode="json")
    space: dict[str, Any] = {"model.embedding_dim": {"grid": [4, 8, 16]}}
    sweep = Sweep(project / "sweeps" / "named")
    sweep.create(SweepPlan("named", settings, space, ["val/miou"], 4, 0, "predicted", False, 3))
    for number, outcome in enumerate(("running", "finished", "waiting")):
        score = 0.25 if outcome == "finished" else None
        sweep.write(TrialRecord(number, {"model.embedding_dim": 4 * 2**number}, outcome, score))
    events = [  # two seconds a step; then a validation
        {"step": 1, "time": 1_000, "metrics": {"train/loss": 3.0}},
        {"step": 4, "time": 7_000, "metrics": {"train/loss": 2.0, "train/learning_rate": 0.1}},
        {"step": 4, "time": 7_500, "metrics": {"holdout/miou": 0.125}},
    ]
    text = "".join(f"{json.dumps(event)}\n" for event in events)
    (sweep.trial_folder(0) / "metrics.jsonl").write_text(text + '{"step": 5, "ti')
    return sweep


def test_states_are_read_from_the_files_of_the_sweep(sweep: Sweep) -> None:
    running, finished, waiting = trial_states(sweep, sweep.plan)
    assert (running.step, running.steps, running.loss, running.miou) == (4, 8, 2.0, 0.125)
    assert running.seconds_left == pytest.approx(8.0)
    assert (finished.miou, finished.seconds_left) == (0.25, None)
    assert (waiting.step, waiting.loss, waiting.miou) == (0, None, None)
    said = "trial 0 (model.embedding_dim 4): step 4/8, loss 2.000, mIoU 12.50 %, 8 s left"
    assert line(running) == said
    assert line(waiting) == "trial 2 (model.embedding_dim 16): step 0/8"


def test_the_table_has_the_running_trials_first(sweep: Sweep) -> None:
    from rich.console import Console

    console = Console(width=100, record=True, quiet=False, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(table(trial_states(sweep, sweep.plan), sweep.plan))
    text = console.export_text()
    assert "1 of 4 done" in text
    rows = [row.split() for row in text.splitlines() if "/8" in row]
    assert [row[0] for row in rows] == ["0", "2", "1"] or [row[0] for row in rows] == ["0", "1", "2"]
    assert rows[0] == ["0", "4", "4/8", "2.000", "12.50", "8", "s", "running"]


def test_in_a_log_only_running_trials_are_told(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    with shown(sweep, sweep.plan, seconds=0.02):
        (end := time.monotonic() + 5)
        while not (said := capsys.readouterr().err):
            assert time.monotonic() < end
            time.sleep(0.01)
    assert set(said.splitlines()) == {line(trial_states(sweep, sweep.plan)[0])}


def test_files_that_are_just_being_written_end_no_sweep(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep.trial_folder(1) / "trial.json").write_text("{")
    with shown(sweep, sweep.plan, seconds=0.01):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""
