"""A sweep whose tracking server goes away in the middle and comes back."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from pathlib import Path

import pytest

from pipeline.tuning.sweep import DONE, Sweep, read_journal
from tests.pipeline.tracking.stores import Store
from tests.pipeline.tuning.sweeping import (
    make_project,
    outcomes,
    runs,
    steps_of,
    tune,
    tune_here,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.process, pytest.mark.training]
STEPS = 30
DOWN_SECONDS = float(os.environ.get("KILOSEG_DOWN_SECONDS", "0"))  # docs/LOG.md has the run with 60


@pytest.fixture(scope="module")
def interrupted_store(
    tmp_path_factory: pytest.TempPathFactory, bootstrapped_project: Path, empty_store: Path
) -> Path:
    """A project after a sweep whose tracking server was away in the middle, with trials that were behind.

    The learning rates make sure of those: trial 0 learns, the others all but stand still.
    """
    project = make_project(
        tmp_path_factory.mktemp("interrupted") / "project",
        bootstrapped_project,
        empty_store,
        tune={
            "space": {"train.learning_rate": {"grid": [0.2, 1e-9, 1e-8, 1e-7]}},
            "max_concurrent": 1,
            "objectives": ["holdout/miou", "peak_memory_gib"],
            "reduction_factor": 2,
        },
        train={"steps": STEPS, "validate_every": 10, "crop_size": 48, "batch_size": 4},
    )
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.ExitStack() as last:
        store = Store(project, monkeypatch)
        first = contextlib.ExitStack()
        first.enter_context(store.answering())

        def go_away_and_come_back() -> None:
            assert store.curves_came.wait(300)
            first.close()
            wait_until(lambda: "does not answer" in (project / "tune.log").read_text())
            wait_until(lambda: sum(done in DONE for done in outcomes(project, "behind")) == 4)
            time.sleep(DOWN_SECONDS)
            last.enter_context(store.answering())

        result = tune(
            project,
            "--name",
            "behind",
            beside=go_away_and_come_back,
            MLFLOW_TRACKING_URI=store.uri,
            MLFLOW_HTTP_REQUEST_MAX_RETRIES="1",
        )
        assert result.returncode == 0, result.stderr
    return project


def test_nothing_is_lost_while_the_tracking_server_is_down(interrupted_store: Path) -> None:
    store = f"sqlite:///{interrupted_store / 'mlflow.db'}"
    parents, children = runs(store, "behind")
    assert [run.info.status for run in parents + children] == ["FINISHED"] * 5
    for run in children:
        folder = Sweep(interrupted_store / "sweeps" / "behind").trial_folder(
            int(run.data.tags["sweep_trial"])
        )
        events = read_journal(folder / "metrics.jsonl")
        assert len(events) > 3
        for metric in ("train/loss", "holdout/miou"):
            said = [event["step"] for event in events if metric in event["metrics"]]
            assert steps_of(store, run, metric) == said
    (whole,) = [run for run in children if run.data.tags["sweep_trial"] == "0"]
    assert steps_of(store, whole, "train/loss") == list(range(1, STEPS + 1))
    assert steps_of(store, whole, "holdout/miou") == list(range(10, STEPS + 1, 10))
    assert outcomes(interrupted_store, "behind")[0] == "finished"


def test_trials_that_are_behind_are_pruned_and_say_so(
    interrupted_store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = outcomes(interrupted_store, "behind")
    assert ended[0] == "finished"
    assert ended.count("pruned") >= 2
    _, children = runs(f"sqlite:///{interrupted_store / 'mlflow.db'}", "behind")
    by_outcome = Counter((run.info.status, run.data.tags["outcome"]) for run in children)
    assert by_outcome[("FINISHED", "pruned")] == ended.count("pruned")
    pruned = [run for run in children if run.data.tags["outcome"] == "pruned"]
    assert all(": pruned, learning_rate=" in str(run.info.run_name) for run in pruned)
    assert all("It was pruned" in run.data.tags["mlflow.note.content"] for run in pruned)
    monkeypatch.chdir(interrupted_store)
    assert tune_here("best") == 0
    assert "held-out part" in capfd.readouterr().out
