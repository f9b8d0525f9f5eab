"""Track in MLflow: one run per variant, which training opens and evaluation continues.

Only MLflow's client is used, never its global "active run": every call names its run. The store is
MLFLOW_TRACKING_URI, or `mlflow.db` (SQLite) in the project with its artifacts beside it.
"""

from __future__ import annotations

import contextlib
import csv
import getpass
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.config.paths import bootstrapped_folder

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read by mlflow when it is imported

import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES

from pipeline.config.schema import Settings
from pipeline.runtime.errors import KilosegError
from pipeline.tracking.environment import git_commit
from pipeline.tracking.tracker import tracking_uri


class MlflowTracker:
    """Write to one MLflow run: a `Tracker`."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self._run_id = client, run_id

    @property
    def run_id(self) -> str:
        """Return MLflow's id of the run."""
        return self._run_id

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log the parameters that the run lacks (MLflow never changes one)."""
        known = self.client.get_run(self._run_id).data.params
        fresh = [Param(key, str(value)) for key, value in params.items() if key not in known]
        for start in range(0, len(fresh), 100):  # MLflow's limit for one call
            self.client.log_batch(self._run_id, params=fresh[start : start + 100])

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the numbers at `step`, in one call."""
        now = int(time.time() * 1000)
        values = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        self.client.log_batch(self._run_id, metrics=values)

    def log_artifact(self, path: Path) -> None:
        """Copy the file to the run."""
        self.client.log_artifact(self._run_id, str(path))

    def log_table(self, path: Path, name: str) -> None:
        """Log a CSV file as a table that MLflow's UI shows and compares."""
        with path.open(newline="", encoding="utf-8") as file:
            columns, *rows = csv.reader(file)
        data = [[_number(cell) for cell in row] for row in rows]
        self.client.log_text(self._run_id, json.dumps({"columns": columns, "data": data}), name)
        tag = "mlflow.loggedArtifacts"  # how MLflow's UI finds tables
        self.client.set_tag(self._run_id, tag, json.dumps([{"path": name, "type": "table"}]))

    def log_data(self, settings: Settings, split: str, context: str) -> None:
        """Log a split of the bootstrapped data as an input; `context` is MLflow's word for its use."""
        manifest = bootstrapped_folder(settings) / "manifest.json"
        if not manifest.is_file():
            return  # training itself reports what is missing
        source = json.dumps(
            {"root": str(settings.data.root), "bootstrapped": str(bootstrapped_folder(settings))}
        )
        dataset = Dataset(f"{settings.data.root.name} {split}", _digest(manifest), "local", source)
        used = DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
        self.client.log_inputs(self._run_id, [used])


def _number(cell: str) -> float | str | None:
    """Return the cell as a number if it is one, so that the UI sorts by value; None if empty."""
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


@contextlib.contextmanager
def open_run(settings: Settings, *, run_id: str | None = None) -> Iterator[MlflowTracker]:
    """Open the run `run_id`, or a new one if that is None or not in this store.

    The run ends FINISHED, KILLED if the process is interrupted, or FAILED on any other error.

    Raises:
        KilosegError: the store cannot be reached.
    """
    client = open_client(settings)
    try:
        run_id = _existing(client, run_id) or _create(client, settings)
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        raise unreachable(settings, error) from error
    status = "FAILED"
    try:
        yield MlflowTracker(client, run_id)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        client.set_terminated(run_id, status)


def unreachable(settings: Settings, error: BaseException) -> KilosegError:
    """Make the error for a store that does not answer."""
    return KilosegError(
        "the MLflow store does not answer",
        where=tracking_uri(settings),
        found=str(error).splitlines()[0],
        hint="check MLFLOW_TRACKING_URI and that its server runs, or unset it to use mlflow.db",
    )


def open_client(settings: Settings) -> MlflowClient:
    """Open a client of the store that gives up on a silent server in seconds, not minutes.

    Raises:
        KilosegError: it is no store, or a database that refuses us. (A server is checked by the first call.)
    """
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.utils.uri"):
        logging.getLogger(name).setLevel(logging.WARNING)  # one line per database migration otherwise
    os.environ.setdefault(
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3"
    )  # else an unreachable server hangs for minutes
    uri = tracking_uri(settings)
    try:
        if uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES:
            engine = sqlalchemy.create_engine(uri)  # once: MLflow itself tries for minutes
            engine.connect().close()
            engine.dispose()
        return MlflowClient(tracking_uri=uri)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, MlflowException) as error:
        raise unreachable(settings, error) from error


def _existing(client: MlflowClient, run_id: str | None) -> str | None:
    if run_id is None:
        return None
    with contextlib.suppress(MlflowException):
        if client.get_run(run_id).info.lifecycle_stage == "active":
            return run_id
    return None


def _create(client: MlflowClient, settings: Settings) -> str:
    variant = settings.variant or "default"
    tags = {**run_tags(settings), "variant": variant}
    run = client.create_run(experiment_id(client, settings), run_name=variant, tags=tags)
    return str(run.info.run_id)


def run_tags(settings: Settings) -> dict[str, str]:
    """Return the tags that describe the origin of a run."""
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": "kiloseg",
        "mlflow.source.type": "PROJECT",
        "git_commit": git_commit(settings.project),
        "dvc_lock": _digest(settings.project / "dvc.lock"),
    }
    if len(tags["git_commit"]) == 40:
        tags["mlflow.source.git.commit"] = tags["git_commit"]
    return tags


def experiment_id(client: MlflowClient, settings: Settings) -> str:
    """Return the id of the settings' experiment; create it if it does not exist."""
    name = settings.tracking.experiment
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = tracking_uri(settings).startswith("sqlite:")
    artifacts = (settings.project / "mlartifacts").as_uri() if local else None  # a server chooses its own
    return str(client.create_experiment(name, artifact_location=artifacts))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return "unknown"


def _digest(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest() if path.is_file() else "absent"


def log_to_finished_run(settings: Settings, run_id: str | None, path: Path) -> None:
    """Add a file, such as the report, to a run that has ended; skip an unknown run."""
    client = open_client(settings)
    known = _existing(client, run_id)
    if known is not None:
        client.log_artifact(known, str(path))
