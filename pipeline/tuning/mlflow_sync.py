"""Send a sweep's files to MLflow: one parent run, one child run per trial, updated by a thread of the driver.

Trials write their numbers to files; the thread sends what is new. If the server is down or the driver is
killed, nothing is lost: the files keep the numbers, which are sent later, each once.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException

from pipeline.config.schema import Settings
from pipeline.tracking.mlflow_tracker import MlflowTracker, experiment_id, open_client, run_tags, unreachable
from pipeline.tracking.tracker import tracking_uri
from pipeline.tuning.sweep import Sweep, SweepPlan, TrialRecord, trial_settings
from pipeline.tuning.trial_run import TrialRun

_UNREACHABLE = (MlflowException, RequestException, OSError)


class MlflowSync:
    """Keep the sweep's runs in MLflow up to date until closed.

    Args:
        sweep: the sweep whose files are sent.
        settings: name the store and the experiment.
        interval: seconds between two reads of the files.
    """

    def __init__(self, sweep: Sweep, settings: Settings, *, interval: float = 2.0) -> None:
        self.sweep, self.settings, self.interval = sweep, settings, interval
        self.client = open_client(settings)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send_until_closed, name="mlflow sync", daemon=True)
        self._runs: dict[int, TrialRun] = {}
        self._down_since: float | None = None
        self._experiment = ""

    def open(self) -> None:
        """Find or create the parent run, note it in the plan, and start the thread.

        Raises:
            KilosegError: the store cannot be reached.
        """
        plan = self.sweep.plan
        try:
            self._experiment = experiment_id(self.client, self.settings)
            found = self._find({"sweep": plan.name, "sweep_role": "parent"}, plan.run_id)
            run_id = found or self._create_parent(plan)
            self.client.update_run(run_id, status="RUNNING")
        except _UNREACHABLE as error:
            raise unreachable(self.settings, error) from error
        self.sweep.rewrite(replace(plan, run_id=run_id))
        self._thread.start()

    def close(self, status: str, artifacts: Iterable[Path] = (), *, patience: float = 300.0) -> bool:
        """Send what is left and end the runs.

        Args:
            status: of the parent run. Children that have not ended get KILLED.
            artifacts: files for the parent run.
            patience: seconds to wait for a server that is down.

        Returns:
            Whether everything was sent; else a resumed sweep sends the rest.
        """
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()
        end, run_id = time.monotonic() + patience, self.sweep.plan.run_id
        while True:
            try:
                self._send()
                for number, run in self._runs.items():
                    if not self.sweep.record(number).done:
                        run.end("KILLED", "stopped")
                if run_id is not None:
                    for path in artifacts:
                        self.client.log_artifact(run_id, str(path))
                    self._log_best(run_id)
                    self.client.set_terminated(run_id, status)
                return True
            except _UNREACHABLE as error:
                self._warn_down(error)
                if time.monotonic() >= end:
                    return False
                time.sleep(min(self.interval, 2.0))

    def _send_until_closed(self) -> None:
        while not self._closing.wait(self.interval):
            try:
                self._send()
                if self._down_since is not None:
                    print("the MLflow store answers again", file=sys.stderr, flush=True)
                self._down_since = None
            except _UNREACHABLE as error:
                self._warn_down(error)

    def _warn_down(self, error: BaseException) -> None:
        if self._down_since is None:
            self._down_since = time.monotonic()
            reason = str(error).splitlines()[0][:160]
            print(
                f"warning: the MLflow store {tracking_uri(self.settings)} does not answer ({reason}); "
                "the sweep goes on and sends its numbers later",
                file=sys.stderr,
                flush=True,
            )

    def _send(self) -> None:
        plan = self.sweep.plan
        for record in self.sweep.records():
            if record.outcome == "waiting":
                continue
            if record.number not in self._runs:
                self._runs[record.number] = self._open_trial_run(record, plan)
            self._runs[record.number].send(record)

    def _create_parent(self, plan: SweepPlan) -> str:
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

    def _open_trial_run(self, record: TrialRecord, plan: SweepPlan) -> TrialRun:
        """Find or create the child run of a trial, with all its parameters."""
        folder = self.sweep.trial_folder(record.number)
        marks = {"sweep": plan.name, "sweep_trial": str(record.number)}
        found = self._find(marks, TrialRun.known_id(folder))
        run_id = found or self._create_child(record, plan, marks)
        run = TrialRun(self.client, run_id, folder, resumed=found is not None)
        MlflowTracker(self.client, run.run_id).log_params(trial_settings(plan, record.values).flat())
        return run

    def _create_child(self, record: TrialRecord, plan: SweepPlan, marks: dict[str, str]) -> str:
        swept = ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in record.values.items())
        tags = {
            **run_tags(self.settings),
            **marks,
            "mlflow.parentRunId": str(plan.run_id),
            "memory_kind": plan.memory_kind,
        }
        name = f"trial {record.number:03d}: {swept}"
        return str(self.client.create_run(self._experiment, run_name=name, tags=tags).info.run_id)

    def _find(self, marks: dict[str, str], known: str | None) -> str | None:
        """Find the run with these tags: a driver killed between two calls must not make a second one."""
        text = " and ".join(f"tags.{key} = '{value}'" for key, value in marks.items())
        runs = self.client.search_runs([self._experiment], filter_string=text, max_results=50)
        ids = [str(run.info.run_id) for run in runs]
        return known if known in ids else (ids[0] if ids else None)

    def _log_best(self, run_id: str) -> None:
        records = [record for record in self.sweep.records() if record.outcome == "finished"]
        if not records:
            return
        best = max(records, key=lambda record: record.score or 0.0)
        now = int(time.time() * 1000)
        numbers = {"best/miou": best.score or 0.0, "best/peak_memory_gib": best.memory_gib or 0.0}
        metrics = [Metric(name, value, now, len(records)) for name, value in numbers.items()]
        chosen = [RunTag("best_trial", str(best.number))]
        self.client.log_batch(run_id, metrics=metrics, tags=chosen)


def check_store(settings: Settings) -> None:
    """Check that the store answers and migrate it, before anything starts.

    Raises:
        KilosegError: the store does not answer.
    """
    client = open_client(settings)
    try:
        experiment_id(client, settings)
    except _UNREACHABLE as error:
        raise unreachable(settings, error) from error
