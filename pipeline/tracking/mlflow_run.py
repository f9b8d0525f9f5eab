"""Send the events of a journal to one MLflow run, in order and each once."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from pipeline.tracking.journal import milliseconds
from pipeline.tracking.mlflow_model import send_model

_MAX_METRICS = 1000  # MLflow's limits for one call
_MAX_PARAMS = 100


class MlflowRun:
    """Send events to a run that exists.

    A call that failed may have arrived in part or whole. The next one therefore asks the store which steps of
    a curve it has. So does the first one if an earlier process may have sent something.

    Args:
        client: of the MLflow store.
        run_id: of the run.
        resumed: whether an earlier process may have sent something.
        files: folder of the logged files.
    """

    def __init__(
        self, client: MlflowClient, run_id: str, *, resumed: bool, files: Path | None = None
    ) -> None:
        self.client, self.run_id, self.files = client, run_id, files
        self.refused: list[str] = []
        """what the store does not take, however often it is sent"""
        self._sent = 0  # number of events
        self._uncertain = resumed  # the store may hold more than _sent counts
        self._last: dict[str, int] = {}  # the last step of each curve that was sent

    def send(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Send what is new in `events`, which only grows from call to call.

        Raises:
            MlflowException, RequestException, OSError: the store does not answer; call again later.
        """
        while self._sent < len(events):
            curve = self._curve_at(events)
            try:
                if curve:
                    self._send_curve(curve)
                else:
                    self._send_one(events[self._sent])
            except MlflowException as error:
                if error.error_code != "INVALID_PARAMETER_VALUE" or not is_active(self.client, self.run_id):
                    raise
                self.refused.append(str(error).splitlines()[0])
            self._sent += max(len(curve), 1)

    def _curve_at(self, events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return the next events if they are points of curves, up to the first that is not."""
        end = self._sent
        while end < len(events) and "metrics" in events[end] and not events[end].get("result"):
            end += 1
        return list(events[self._sent : end])

    def _send_curve(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Send points of curves, of which a resumed training repeats some."""
        if self._uncertain:
            self._look_up_last_steps({name for event in events for name in event["metrics"]})
        last, metrics = dict(self._last), []
        for event in events:
            for name, value in event["metrics"].items():
                if event["step"] > last.get(name, -1):
                    metrics.append(Metric(name, value, event.get("time", 0), event["step"]))
                    last[name] = event["step"]
        self._uncertain = True  # a failure may come after a part has arrived
        for start in range(0, len(metrics), _MAX_METRICS):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + _MAX_METRICS])
        self._uncertain, self._last = False, last

    def _look_up_last_steps(self, names: Iterable[str]) -> None:
        present = self.client.get_run(self.run_id).data.metrics
        for name in present.keys() & set(names):
            history = self.client.get_metric_history(self.run_id, name)
            self._last[name] = max((point.step for point in history), default=-1)

    def _send_one(self, event: Mapping[str, Any]) -> None:
        if "metrics" in event:
            send_results(self.client, self.run_id, event["metrics"], event["step"], event["time"])
        elif "params" in event:
            send_params(self.client, self.run_id, event["params"])
        elif "artifact" in event:
            self._send_file(event["artifact"])
        elif "table" in event:
            self._send_table(event["table"], event["name"])
        elif "dataset" in event:
            found = event["dataset"]
            dataset = Dataset(found["name"], found["digest"], "local", found["source"])
            used = DatasetInput(dataset, [InputTag("mlflow.data.context", found["context"])])
            self.client.log_inputs(self.run_id, [used])
        elif "tags" in event:
            self.client.log_batch(self.run_id, tags=[RunTag(*one) for one in event["tags"].items()])
        elif "model" in event:
            send_model(self.client, self.run_id, event["model"])
        elif event.get("status") == "RUNNING":
            self.client.update_run(self.run_id, status="RUNNING")
        elif "status" in event:
            self.client.set_terminated(self.run_id, event["status"], end_time=event["time"])

    def _send_file(self, name: str) -> None:
        path = None if self.files is None else self.files / name
        if path is not None and path.is_file():  # else the disk did not take the copy, which was said
            self.client.log_artifact(self.run_id, str(path))

    def _send_table(self, file_name: str, name: str) -> None:
        """Log a CSV file as a table that MLflow's UI shows and compares."""
        path = None if self.files is None else self.files / file_name
        if path is None or not path.is_file():
            return
        with path.open(newline="", encoding="utf-8") as file:
            columns, *rows = csv.reader(file)
        data = [[_number(cell) for cell in row] for row in rows]
        self.client.log_text(self.run_id, json.dumps({"columns": columns, "data": data}), name)
        tag = "mlflow.loggedArtifacts"  # how MLflow's UI finds tables
        self.client.set_tag(self.run_id, tag, json.dumps([{"path": name, "type": "table"}]))


def send_params(client: MlflowClient, run_id: str, params: Mapping[str, object]) -> None:
    """Log the parameters that the run lacks (MLflow never changes one)."""
    known = client.get_run(run_id).data.params
    fresh = [Param(key, str(value)) for key, value in params.items() if key not in known]
    for start in range(0, len(fresh), _MAX_PARAMS):
        client.log_batch(run_id, params=fresh[start : start + _MAX_PARAMS])


def send_results(
    client: MlflowClient,
    run_id: str,
    results: Mapping[str, float | None],
    step: int,
    time: int | None = None,
    extra: Sequence[Any] = (),
) -> None:
    """Log numbers that are no curve: those that the run lacks or has with another value.

    Args:
        client: of the store.
        run_id: of the run.
        results: by name.
        step: of all of them.
        time: milliseconds since 1970; None is now.
        extra: tags to set in the same call.
    """
    known = client.get_run(run_id).data.metrics
    when = milliseconds() if time is None else time
    fresh = [
        Metric(name, value, when, step)
        for name, value in results.items()
        if value is not None and not (name in known and known[name] == value)
    ]
    if fresh or extra:
        client.log_batch(run_id, metrics=fresh, tags=list(extra))


def is_active(client: MlflowClient, run_id: str) -> bool:
    """Tell whether the store has the run, not deleted.

    Raises:
        MlflowException, RequestException: the store does not answer.
    """
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if is_missing(error):
            return False
        raise


def is_missing(error: BaseException) -> bool:
    """Tell whether a store answered that it has no such run or model."""
    return isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"


def find_run(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> list[str]:
    """Return the ids of the runs with these tags, the latest first."""
    text = " and ".join(f"tags.{key} = '{value}'" for key, value in tags.items())
    found = client.search_runs([experiment], filter_string=text, max_results=50)
    return [str(run.info.run_id) for run in found]


def _number(cell: str) -> float | str | None:
    """Return the cell as a number if it is one, so that the UI sorts by value; None if empty."""
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell
