"""Ray Tune that ends as a whole because one trial's machine ran low on memory, and is started again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import load_settings
from pipeline.tuning import runner
from pipeline.tuning.callbacks import RESTARTS
from pipeline.tuning.cluster import Resources
from pipeline.tuning.space import read_space
from pipeline.tuning.sweep import Sweep, SweepPlan, TrialRecord

TOLD = """Caught unexpected exception: 1 worker(s) were killed due to the node running low on memory. Memory \
on the node (IP: 192.0.2.2, ID: 6f1a) was 22.61GB used / 23.54GB limit (0.960315)
Ray killed 1 worker(s) based on the killing policy
Considered workers: [
Selected to kill: (Actor(e9ec): job ID=01, task name=ImplicitFunc.__init__, pid=102, memory used=19GB)
]
Total non-selected idle workers: 0
Top 10 memory users: PID	MEM(GB)	COMMAND
102	19.28	ray::ImplicitFunc.train
pid=101 is named here, and was not killed
"""


@pytest.fixture
def sweep(project: Path) -> Sweep:
    """Two trials that run in the processes 101 and 102."""
    settings = load_settings(variant="essnet").model_dump(mode="json")
    space: dict[str, Any] = {"model.embedding_dim": {"grid": [4, 8]}}
    sweep = Sweep(project / "sweeps" / "named")
    sweep.create(SweepPlan("named", settings, space, ["val/miou"], 2, 0, "predicted", False, 3))
    for number in range(2):
        sweep.write(TrialRecord(number, {"model.embedding_dim": 4 * (number + 1)}, "running"))
        (sweep.trial_folder(number) / ".lock").write_text(str(101 + number))
    return sweep


def go(sweep: Sweep, monkeypatch: pytest.MonkeyPatch, endings: list[Exception | None]) -> int:
    """Runs the sweep over runs of Ray Tune that end so; returns how often Ray was joined again."""
    joined: list[str | None] = []

    def fit(*arguments: object) -> None:
        ending = endings.pop(0)
        if ending is not None:
            raise ending

    monkeypatch.setattr(runner, "_fit", fit)
    monkeypatch.setattr(runner, "connect", joined.append)
    plan = sweep.plan
    space = read_space(plan.space, plan.base())
    runner._fit_until_done(sweep, plan, space, Resources(1, 0.0, 2), "auto", None)
    assert set(joined) <= {"auto"}
    return len(joined)


def test_the_trial_that_was_killed_is_tried_again_and_then_infeasible(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert go(sweep, monkeypatch, [RuntimeError(TOLD)] * RESTARTS + [None]) == RESTARTS
    assert [record.outcome for record in sweep.records()] == ["running", "running"]
    assert go(sweep, monkeypatch, [RuntimeError(TOLD)] * (RESTARTS + 1) + [None]) == RESTARTS + 1
    assert [record.outcome for record in sweep.records()] == ["running", "infeasible"]


def test_without_the_killed_process_all_running_trials_count(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it ends, whatever Ray says."""
    told = TOLD.replace("pid=102", "pid=999")
    go(sweep, monkeypatch, [RuntimeError(told)] * (RESTARTS + 1) + [None])
    assert [record.outcome for record in sweep.records()] == ["infeasible", "infeasible"]


def test_any_other_end_of_ray_tune_is_not_hidden(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="a defect"):
        go(sweep, monkeypatch, [RuntimeError("a defect")])
