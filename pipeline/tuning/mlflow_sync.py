"""Send a sweep's files to MLflow: one parent run, one child run per trial, updated by a thread of the driver.

Trials write their numbers to files; the thread (`pipeline.tracking.mirror`) sends what is new. If the server
is down or the driver is killed, nothing is lost: the files keep the numbers, which are sent later, each once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mlflow.entities import Param, RunTag

from pipeline.config.schema import Settings
from pipeline.tracking.mirror import Mirror
from pipeline.tracking.mlflow_run import find_run, send_params, send_results
from pipeline.tracking.mlflow_store import STORE_ERRORS, experiment_id, explain, open_client
from pipeline.tracking.mlflow_tracker import run_tags
from pipeline.tuning.sweep import Sweep, SweepPlan, TrialRecord, trial_settings
from pipeline.tuning.trial_run import TrialRun, trial_name

PATIENCE_SECONDS = 300.0
"""How long the end of a sweep waits for a store that is away."""
KILLED_PATIENCE_SECONDS = 10.0
"""How long the end of a stopped one does."""


class MlflowSync:
    """Keep the sweep's runs in MLflow up to date until closed.

    Args:
        sweep: the sweep whose files are sent.
        settings: name the store and the experiment.
        interval: seconds between two reads of the files.
    """

    def __init__(self, sweep: Sweep, settings: Settings, *, interval: float = 2.0) -> None:
        self.sweep, self.settings = sweep, settings
        self.client = open_client(settings)
        self._mirror = Mirror(
            self._send, what="the sweep", explain=lambda error: explain(settings, error), interval=interval
        )
        self._runs: dict[int, TrialRun] = {}
        self._experiment = ""

    def open(self) -> None:
        """Find or create the parent run, note it in the plan, and start the thread.

        Raises:
            KilosegError: the store cannot be reached.
        """
        plan = self.sweep.plan
        self._experiment = experiment_id(self.client, self.settings)
        try:
            found = self._find({"sweep": plan.name, "sweep_role": "parent"}, plan.run_id)
            run_id = found or self._create_parent(plan)
            self.client.update_run(run_id, status="RUNNING")
        except STORE_ERRORS as error:
            raise explain(self.settings, error) from error
        self.sweep.rewrite(replace(plan, run_id=run_id))
        self._mirror.start()

    def close(
        self, status: str, artifacts: Iterable[Path] = (), *, patience: float = PATIENCE_SECONDS
    ) -> bool:
        """Send what is left and end the runs.

        Args:
            status: of the parent run. Children that have not ended get KILLED.
            artifacts: files for the parent run.
            patience: seconds to wait for a server that is down.

        Returns:
            Whether everything was sent; else a resumed sweep or `pipeline sync` sends the rest.
        """
        artifacts = list(artifacts)
        return self._mirror.close(lambda: self._end(status, artifacts), patience=patience)

    def _end(self, status: str, artifacts: Iterable[Path]) -> None:
        run_id = self.sweep.plan.run_id
        for number, run in self._runs.items():
            if not self.sweep.record(number).done:
                run.end("KILLED", "stopped")
        if run_id is not None:
            for path in artifacts:
                self.client.log_artifact(run_id, str(path))
            self._log_best(run_id)
            self.client.set_terminated(run_id, status)

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
        run = TrialRun(self.client, run_id, folder, plan=plan, resumed=found is not None)
        params = trial_settings(plan, record.values).flat()
        if plan.threads is not None:
            params["environment.threads"] = plan.threads
        send_params(self.client, run.run_id, params)
        return run

    def _create_child(self, record: TrialRecord, plan: SweepPlan, marks: dict[str, str]) -> str:
        tags = {
            **run_tags(self.settings),
            **marks,
            "mlflow.parentRunId": str(plan.run_id),
            "memory_kind": plan.memory_kind,
            "variant": self.settings.tune.variant or "default",
        }
        name = trial_name(record, plan)
        return str(self.client.create_run(self._experiment, run_name=name, tags=tags).info.run_id)

    def _find(self, marks: dict[str, str], known: str | None) -> str | None:
        """Find the run with these tags: a driver killed between two calls must not make a second one."""
        ids = find_run(self.client, self._experiment, marks)
        return known if known in ids else (ids[0] if ids else None)

    def _log_best(self, run_id: str) -> None:
        records = [record for record in self.sweep.records() if record.outcome == "finished"]
        if not records:
            return
        best = max(records, key=lambda record: record.score or 0.0)
        numbers = {"best/miou": best.score or 0.0, "best/peak_memory_gib": best.memory_gib or 0.0}
        chosen = [RunTag("best_trial", str(best.number))]
        send_results(self.client, run_id, numbers, len(records), extra=chosen)


def check_store(settings: Settings) -> None:
    """Check that the store answers and migrate it, before anything starts.

    Raises:
        KilosegError: the store does not answer, or refuses.
    """
    experiment_id(open_client(settings), settings)
