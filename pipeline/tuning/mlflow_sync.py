"""MLflow's view of a sweep: one parent run, a child a trial, kept up by a thread of the driver.

The trials write their numbers to files; this thread sends what is new. A server that is down, or a driver
that is killed, loses nothing: what could not be sent is still in the files and is sent later, once.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException

from pipeline.config.schema import Settings
from pipeline.runtime.files import write_text
from pipeline.tracking.mlflow_tracker import experiment_id, open_client, run_tags, unreachable
from pipeline.tracking.tracker import tracking_uri
from pipeline.tuning.sweep import Plan, Sweep, TrialRecord, read_journal, trial_settings

_STATUS = {"finished": "FINISHED", "pruned": "FINISHED", "infeasible": "FINISHED", "failed": "FAILED"}
_UNREACHABLE = (MlflowException, RequestException, OSError)
_AT_ONCE = 1000  # MLflow's limit for one call


class Mirror:
    """Sends a sweep's files to MLflow until it is closed.

    Args:
        sweep: whose files.
        settings: name the store and the experiment.
        interval: seconds between two looks at the files.
    """

    def __init__(self, sweep: Sweep, settings: Settings, *, interval: float = 2.0) -> None:
        self.sweep, self.settings, self.interval = sweep, settings, interval
        self.client = open_client(settings)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow mirror", daemon=True)
        self._children: dict[int, _Child] = {}
        self._silent_since: float | None = None
        self._plan: Plan | None = None
        self._experiment = ""

    def open(self) -> None:
        """Finds or makes the parent run, notes it in the plan, and starts the thread.

        Raises:
            KilosegError: the store cannot be reached.
        """
        plan = self.sweep.plan
        try:
            self._experiment = experiment_id(self.client, self.settings)
            run_id = self._find({"sweep": plan.name, "sweep_role": "parent"}, plan.run_id) or self._parent(
                plan
            )
            self.client.update_run(run_id, status="RUNNING")
        except _UNREACHABLE as error:
            raise unreachable(self.settings, error) from error
        self.sweep.rewrite(replace(plan, run_id=run_id))
        self._thread.start()

    def close(self, status: str, artifacts: Iterable[Path] = (), *, patience: float = 300.0) -> bool:
        """Sends what is left and ends the runs.

        Args:
            status: of the parent, and KILLED of children that have not ended.
            artifacts: files for the parent.
            patience: seconds to wait for a server that is down.

        Returns:
            Whether everything arrived; else a resumed sweep sends the rest.
        """
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()
        end, run_id = time.monotonic() + patience, self.sweep.plan.run_id
        while True:
            try:
                self._send()
                for number, child in self._children.items():
                    if not self.sweep.record(number).done:
                        child.end("KILLED", "stopped")
                if run_id is not None:
                    for path in artifacts:
                        self.client.log_artifact(run_id, str(path))
                    self._summarize(run_id)
                    self.client.set_terminated(run_id, status)
                return True
            except _UNREACHABLE as error:
                self._silent(error)
                if time.monotonic() >= end:
                    return False
                time.sleep(min(self.interval, 2.0))

    def _work(self) -> None:
        while not self._closing.wait(self.interval):
            try:
                self._send()
                if self._silent_since is not None:
                    print("the MLflow store answers again", file=sys.stderr, flush=True)
                self._silent_since = None
            except _UNREACHABLE as error:
                self._silent(error)

    def _silent(self, error: BaseException) -> None:
        if self._silent_since is None:
            self._silent_since = time.monotonic()
            reason = str(error).splitlines()[0][:160]
            print(
                f"warning: the MLflow store {tracking_uri(self.settings)} does not answer ({reason}); "
                "the sweep goes on and sends its numbers later",
                file=sys.stderr,
                flush=True,
            )

    def _send(self) -> None:
        self._plan = self.sweep.plan
        for record in self.sweep.records():
            if record.outcome == "waiting":
                continue
            child = self._children.get(record.number)
            if child is None:
                child = self._children[record.number] = self._child(record, self._plan)
            child.send(record)

    def _parent(self, plan: Plan) -> str:
        tags = {
            **run_tags(self.settings),
            "sweep": plan.name,
            "sweep_role": "parent",
            "memory_kind": plan.memory_kind,
            "objectives": ", ".join(plan.objectives),
        }
        run = self.client.create_run(self._experiment, run_name=plan.name, tags=tags)
        space = {f"space.{key}": json.dumps(values) for key, values in plan.space.items()}
        parameters = [Param(key, value) for key, value in {**space, "trials": str(plan.trials)}.items()]
        self.client.log_batch(run.info.run_id, params=parameters)
        return str(run.info.run_id)

    def _child(self, record: TrialRecord, plan: Plan) -> _Child:
        place = self.sweep.trial_folder(record.number)
        marks = {"sweep": plan.name, "sweep_trial": str(record.number)}
        run_id = self._find(marks, _Child.known(place))
        fresh = run_id is None
        if run_id is None:
            swept = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in record.values.items())
            tags = {
                **run_tags(self.settings),
                **marks,
                "mlflow.parentRunId": str(plan.run_id),
                "memory_kind": plan.memory_kind,
            }
            name = f"trial {record.number:03d}: {swept}"
            run_id = str(self.client.create_run(self._experiment, run_name=name, tags=tags).info.run_id)
        child = _Child(self.client, run_id, place, resumed=not fresh)
        values = trial_settings(plan, record.values).flat()
        child.send_parameters({key: str(value) for key, value in values.items()})
        return child

    def _find(self, marks: dict[str, str], known: str | None) -> str | None:
        """The run with these tags, so that a driver killed between two calls never makes a second one."""
        text = " and ".join(f"tags.{key} = '{value}'" for key, value in marks.items())
        runs = self.client.search_runs([self._experiment], filter_string=text, max_results=50)
        ids = [str(run.info.run_id) for run in runs]
        return known if known in ids else (ids[0] if ids else None)

    def _summarize(self, run_id: str) -> None:
        records = [record for record in self.sweep.records() if record.outcome == "finished"]
        if not records:
            return
        best = max(records, key=lambda record: record.score or 0.0)
        now = int(time.time() * 1000)
        numbers = {"best/miou": best.score or 0.0, "best/peak_memory_gib": best.memory_gib or 0.0}
        metrics = [Metric(name, value, now, len(records)) for name, value in numbers.items()]
        chosen = [RunTag("best_trial", str(best.number))]
        self.client.log_batch(run_id, metrics=metrics, tags=chosen)


class _Child:
    """The run of one trial: what has been sent, and what is new."""

    def __init__(self, client: Any, run_id: str, place: Path, *, resumed: bool) -> None:
        self.client, self.run_id, self.place = client, run_id, place
        self.state = "unknown"  # then running, or the outcome with which it ended
        self._sent = 0  # events of the journal
        self._doubtful = resumed  # whether something may have arrived that is not counted in _sent
        self._last: dict[str, int] = {}
        write_text(place / "mlflow.json", json.dumps({"run_id": run_id}) + "\n")

    @staticmethod
    def known(place: Path) -> str | None:
        """The run id an earlier driver kept."""
        path = place / "mlflow.json"
        return json.loads(path.read_text(encoding="utf-8"))["run_id"] if path.is_file() else None

    def send_parameters(self, values: dict[str, str]) -> None:
        known = self.client.get_run(self.run_id).data.params
        fresh = [Param(key, value) for key, value in values.items() if key not in known]
        for start in range(0, len(fresh), 100):  # MLflow's limit for one call
            self.client.log_batch(self.run_id, params=fresh[start : start + 100])

    def send(self, record: TrialRecord) -> None:
        """Brings the run up to the files."""
        events = read_journal(self.place / "metrics.jsonl")
        if len(events) > self._sent:
            self._send_events(events)
        if record.done:
            self.end(_STATUS[record.outcome], record.outcome, record)
        elif record.outcome == "running" and self.state != "running":
            self.client.update_run(self.run_id, status="RUNNING")
            self.client.set_tag(self.run_id, "outcome", "running")
            self.state = "running"

    def _send_events(self, events: list[dict[str, Any]]) -> None:
        if self._doubtful:
            self._look_up({name for event in events for name in event["metrics"]})
            self._doubtful = False
        metrics = [
            Metric(name, value, event.get("time", 0), event["step"])
            for event in events[self._sent :]
            for name, value in event["metrics"].items()
            if event["step"] > self._last.get(name, -1)
        ]
        self._doubtful = True
        for start in range(0, len(metrics), _AT_ONCE):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + _AT_ONCE])
        self._doubtful = False
        self._sent = len(events)

    def _look_up(self, names: set[str]) -> None:
        present = set(self.client.get_run(self.run_id).data.metrics)
        for name in names & present:
            history = self.client.get_metric_history(self.run_id, name)
            self._last[name] = max((point.step for point in history), default=-1)

    def end(self, status: str, outcome: str, record: TrialRecord | None = None) -> None:
        """Ends the run, once."""
        if self.state == outcome:
            return
        tags = [RunTag("outcome", outcome)]
        metrics = []
        if record is not None:
            now = int(time.time() * 1000)
            numbers = dict(record.metrics)
            if record.score is not None:
                numbers["best/miou"] = record.score
            known = self.client.get_run(self.run_id).data.metrics
            curves = {
                name for event in read_journal(self.place / "metrics.jsonl") for name in event["metrics"]
            }
            metrics = [
                Metric(name, value, now, record.step)
                for name, value in numbers.items()
                if name not in curves and not (name in known and known[name] == value)
            ]
            if record.error:
                tags.append(RunTag("error", record.error[:5000]))
        self.client.log_batch(self.run_id, metrics=metrics, tags=tags)
        self.client.set_terminated(self.run_id, status)
        self.state = outcome


def check_store(settings: Settings) -> None:
    """Makes sure that the store answers, and migrates it, before anything is started.

    Raises:
        KilosegError: it does not.
    """
    client = open_client(settings)
    try:
        experiment_id(client, settings)
    except _UNREACHABLE as error:
        raise unreachable(settings, error) from error
