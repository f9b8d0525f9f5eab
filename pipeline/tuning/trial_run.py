"""Keep the MLflow run of one trial up to date with the trial's files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, RunTag

from pipeline.runtime.files import write_json
from pipeline.tuning.sweep import TrialRecord, read_journal

_STATUS = {"finished": "FINISHED", "pruned": "FINISHED", "infeasible": "FINISHED", "failed": "FAILED"}
_MAX_METRICS = 1000  # MLflow's limit for one call


class TrialRun:
    """Send a trial's numbers to its run, each once.

    Args:
        client: of the MLflow store.
        run_id: of the run, which exists.
        folder: the trial's.
        resumed: whether an earlier driver may have sent something.
    """

    def __init__(self, client: Any, run_id: str, folder: Path, *, resumed: bool) -> None:
        self.client, self.run_id, self.folder = client, run_id, folder
        self.state = "unknown"  # later running, or the outcome it ended with
        self._sent = 0  # number of events
        self._uncertain = resumed  # the store may hold more than _sent counts
        self._last: dict[str, int] = {}
        write_json(folder / "mlflow.json", {"run_id": run_id})

    @staticmethod
    def known_id(folder: Path) -> str | None:
        """Return the run id that an earlier driver kept, if any."""
        path = folder / "mlflow.json"
        return json.loads(path.read_text(encoding="utf-8"))["run_id"] if path.is_file() else None

    def send(self, record: TrialRecord) -> None:
        """Send what the files hold and the run lacks."""
        events = read_journal(self.folder / "metrics.jsonl")
        if len(events) > self._sent:
            self._send_events(events)
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
        if record is not None and record.error:
            tags.append(RunTag("error", record.error[:5000]))
        metrics = [] if record is None else self._results(record)
        self.client.log_batch(self.run_id, metrics=metrics, tags=tags)
        self.client.set_terminated(self.run_id, status)
        self.state = outcome

    def _results(self, record: TrialRecord) -> list[Metric]:
        """Return the results that are no curve and that the run does not have yet."""
        now = int(time.time() * 1000)
        numbers = dict(record.metrics)
        if record.score is not None:
            numbers["best/miou"] = record.score
        known = self.client.get_run(self.run_id).data.metrics
        curves = {name for event in read_journal(self.folder / "metrics.jsonl") for name in event["metrics"]}
        return [
            Metric(name, value, now, record.step)
            for name, value in numbers.items()
            if name not in curves and not (name in known and known[name] == value)
        ]

    def _send_events(self, events: list[dict[str, Any]]) -> None:
        if self._uncertain:
            self._look_up_last_steps({name for event in events for name in event["metrics"]})
            self._uncertain = False
        metrics = [
            Metric(name, value, event.get("time", 0), event["step"])
            for event in events[self._sent :]
            for name, value in event["metrics"].items()
            if event["step"] > self._last.get(name, -1)
        ]
        self._uncertain = True  # a failure may come after a part has arrived
        for start in range(0, len(metrics), _MAX_METRICS):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + _MAX_METRICS])
        self._uncertain = False
        self._sent = len(events)

    def _look_up_last_steps(self, names: set[str]) -> None:
        present = set(self.client.get_run(self.run_id).data.metrics)
        for name in names & present:
            history = self.client.get_metric_history(self.run_id, name)
            self._last[name] = max((point.step for point in history), default=-1)
