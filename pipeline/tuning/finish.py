"""TODO"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.runtime.files import write_text
from pipeline.tuning.mlflow_sync import Mirror
from pipeline.tuning.sweep import Sweep


def end_runs(sweep: Sweep) -> None:
    """Ends the runs of a sweep whose driver was killed, with what its files hold.

    Raises:
        KilosegError: the store cannot be reached.
    """
    from pipeline.tuning.mlflow_sync import Mirror

    plan = sweep.plan
    mirror = Mirror(sweep, plan.base())
    mirror.open()
    whole = sum(record.done for record in sweep.records()) == plan.trials
    _end(sweep, mirror, "FINISHED" if whole else "KILLED")


def _end(sweep: Sweep, mirror: Mirror, status: str) -> bool:
    """Writes table and pictures of what there is and ends the runs; returns whether everything arrived."""
    for record in sweep.records():
        if record.outcome == "running":
            sweep.write(replace(record, outcome="stopped"))
    return mirror.close(status, _write_results(sweep))


def _write_results(sweep: Sweep) -> list[Path]:
    """The table and the pictures of what there is so far."""
    from pipeline.tuning.charts import draw
    from pipeline.tuning.results import results_csv

    plan, records = sweep.plan, sweep.records()
    table = sweep.folder / "results.csv"
    write_text(table, results_csv(plan, records))
    return [table, *draw(plan, records, sweep.folder)]
