"""Keep the MLflow run of one trial up to date with the trial's files."""

from __future__ import annotations

import json
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import RunTag

from pipeline.runtime.files import write_json
from pipeline.tracking.mlflow_run import MlflowRun, send_results
from pipeline.tracking.saved_view import NOTE_TAG, trial_note
from pipeline.tuning.sweep import SweepPlan, TrialRecord, read_journal

_STATUS = {"finished": "FINISHED", "pruned": "FINISHED", "infeasible": "FINISHED", "failed": "FAILED"}


def trial_name(record: TrialRecord, plan: SweepPlan) -> str:
    """Return the name of a trial's run: its number, what became of it if not finished, the values it uses."""
    swept = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in plan.used(record.values).items())
    mark = "" if record.outcome not in _STATUS or record.outcome == "finished" else f"{record.outcome}, "
    return f"{record.number:03d}: {mark}{swept}"


class TrialRun:
    """Send a trial's numbers to its run, each once.

    Args:
        client: of the MLflow store.
        run_id: of the run, which exists.
        folder: the trial's.
        plan: of its sweep.
        resumed: whether an earlier driver may have sent something.
    """

    def __init__(
        self, client: MlflowClient, run_id: str, folder: Path, *, plan: SweepPlan, resumed: bool
    ) -> None:
        self.client, self.run_id, self.folder, self.plan = client, run_id, folder, plan
        self.state = "unknown"  # later running, or the outcome it ended with
        self._curves = MlflowRun(client, run_id, resumed=resumed)
        write_json(folder / "mlflow.json", {"run_id": run_id})

    @staticmethod
    def known_id(folder: Path) -> str | None:
        """Return the run id that an earlier driver kept, if any."""
        path = folder / "mlflow.json"
        return json.loads(path.read_text(encoding="utf-8"))["run_id"] if path.is_file() else None

    def send(self, record: TrialRecord) -> None:
        """Send what the files hold and the run lacks."""
        self._curves.send(read_journal(self.folder / "metrics.jsonl"))
        if record.done:
            self.end(_STATUS[record.outcome], record.outcome, record)
        elif record.outcome == "running" and self.state != "running":
            self.client.update_run(self.run_id, status="RUNNING")
            self.client.set_tag(self.run_id, "outcome", "running")
            self.state = "running"

    def end(self, status: str, outcome: str, record: TrialRecord | None = None) -> None:
        """End the run, once; `record` holds the results of a trial that is done."""
        if self.state == outcome:
            return
        tags = [RunTag("outcome", outcome)]
        if record is not None:
            note = trial_note(self.plan.name, record.number, self.plan.used(record.values), outcome)
            tags += [RunTag(NOTE_TAG, note), RunTag("mlflow.runName", trial_name(record, self.plan))]
            if record.error:
                tags.append(RunTag("error", record.error[:5000]))
        results = {} if record is None else self._results(record)
        send_results(self.client, self.run_id, results, 0 if record is None else record.step, extra=tags)
        self.client.set_terminated(self.run_id, status)
        self.state = outcome

    def _results(self, record: TrialRecord) -> dict[str, float]:
        """Return the results that are no curve."""
        numbers = dict(record.metrics)
        if record.score is not None:
            numbers["best/miou"] = record.score
        curves = {name for event in read_journal(self.folder / "metrics.jsonl") for name in event["metrics"]}
        return {name: value for name, value in numbers.items() if name not in curves}
