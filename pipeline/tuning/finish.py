"""End a sweep: write its table and pictures, and end its runs in MLflow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.runtime.files import write_text
from pipeline.tuning.mlflow_sync import KILLED_PATIENCE_SECONDS, PATIENCE_SECONDS, MlflowSync
from pipeline.tuning.sweep import Sweep


def end_sweep(sweep: Sweep, sync: MlflowSync, status: str) -> bool:
    """Write the results so far and end the runs.

    Args:
        sweep: the sweep; its running trials become stopped.
        sync: its connection to MLflow, open.
        status: MLflow status of the parent run, "FINISHED" or "KILLED".

    Returns:
        Whether everything reached MLflow.
    """
    for record in sweep.records():
        if record.outcome == "running":
            sweep.write(replace(record, outcome="stopped"))
    patience = PATIENCE_SECONDS if status == "FINISHED" else KILLED_PATIENCE_SECONDS
    complete = sync.close(status, write_results(sweep), patience=patience)
    if complete:
        _unsent(sweep).unlink(missing_ok=True)
    else:
        _unsent(sweep).touch()
    return complete


def is_unsent(sweep: Sweep) -> bool:
    """Tell whether the store was away when the sweep ended, so that something is left to send."""
    return _unsent(sweep).exists()


def _unsent(sweep: Sweep) -> Path:
    return sweep.folder / ".unsent"


def end_runs(sweep: Sweep) -> bool:
    """End the runs of a sweep without a driver, with what its files hold.

    Returns:
        Whether everything reached MLflow.

    Raises:
        KilosegError: the store cannot be reached.
    """
    plan = sweep.plan
    sync = MlflowSync(sweep, plan.base())
    sync.open()
    complete = sum(record.done for record in sweep.records()) == plan.trials
    return end_sweep(sweep, sync, "FINISHED" if complete else "KILLED")


def write_results(sweep: Sweep) -> list[Path]:
    """Write results.csv and the pictures, and return their paths."""
    from pipeline.tuning.charts import draw
    from pipeline.tuning.results import results_csv

    plan, records = sweep.plan, sweep.records()
    table = sweep.folder / "results.csv"
    write_text(table, results_csv(plan, records))
    return [table, *draw(plan, records, sweep.folder)]
