"""Track in MLflow: one run per variant, which training opens and evaluation continues.

What is logged is written to files at once and sent by a thread (`pipeline.tracking.mirror`), so that a store
that goes away neither stops nor delays the work: the values arrive when it is back, in order and once. What
has not arrived when the process ends stays in `mlflow-unsent`, for the next process or for `pipeline sync`.

Only MLflow's client is used, never its global "active run": every call names its run.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.config.paths import bootstrapped_folder
from pipeline.config.schema import Settings
from pipeline.runtime.errors import KilosegError
from pipeline.runtime.files import file_digest
from pipeline.tracking.delivery import Delivery, create_run, existing_run, mirror_of, send_unsent
from pipeline.tracking.environment import git_commit, md5_of
from pipeline.tracking.mirror import SLOW_SECONDS, Mirror
from pipeline.tracking.mlflow_model import DIGEST
from pipeline.tracking.mlflow_store import STORE_ERRORS, StoreUnavailable, explain, open_client
from pipeline.tracking.saved_view import NOTE_TAG, variant_note
from pipeline.tracking.unsent import RunPlace, UnsentRun, store_name, unsent_run

PARENT = "mlflow.parentRunId"
"""MLflow's tag of a run that its pages show below another."""
PATIENCE_SECONDS = 30.0
"""How long the end of a process waits for a store that is away."""
_KILLED_PATIENCE_SECONDS = 5.0  # a scheduler's SIGKILL follows its SIGTERM


class MlflowTracker:
    """Log one run: a `Tracker`. No call raises for the store or waits for it.

    Args:
        run: where it is kept until it is sent.
        results: the metrics are results, of which a changed one is logged again, and no curves.
    """

    def __init__(self, run: UnsentRun, *, results: bool = False) -> None:
        self._run, self._results = run, results
        self._said_disk = False
        self.arrived = False
        """whether the store has everything, of a run that was added to after its end"""

    @property
    def run_id(self) -> str:
        """Return MLflow's id of the run."""
        return self._run.place.run_id

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log the parameters that the run lacks (MLflow never changes one)."""
        self._append({"params": {key: str(value) for key, value in params.items()}})

    def log_metrics(self, metrics: Mapping[str, float | None], step: int) -> None:
        """Log the numbers at `step`; those that are not defined (None) are left out."""
        values = {name: float(value) for name, value in metrics.items() if value is not None}
        event = {"step": step, "metrics": values}
        self._append({**event, "result": True} if self._results else event)

    def log_artifact(self, path: Path) -> None:
        """Log the file as it is now."""
        self._run.keep(path, path.name)
        self._append({"artifact": path.name})

    def log_table(self, path: Path, name: str) -> None:
        """Log a CSV file as a table that MLflow's UI shows and compares."""
        self._run.keep(path, path.name)
        self._append({"table": path.name, "name": name})

    def log_data(self, settings: Settings, split: str, context: str) -> None:
        """Log a split of the bootstrapped data as an input; `context` is MLflow's word for its use."""
        manifest = bootstrapped_folder(settings) / "manifest.json"
        if not manifest.is_file():
            return  # training itself reports what is missing
        places = {"root": settings.data.root, "bootstrapped": bootstrapped_folder(settings)}
        dataset = {
            "name": f"{settings.data.root.name} {split}",
            "digest": md5_of(manifest),
            "source": json.dumps({key: _in_project(path, settings) for key, path in places.items()}),
            "context": context,
        }
        self._append({"dataset": dataset})

    def log_model(
        self,
        settings: Settings,
        path: Path,
        metrics: Mapping[str, float | None],
        *,
        step: int,
        params: Mapping[str, object],
    ) -> None:
        """Log a trained network as a model that points to its file.

        Args:
            settings: name the variant and the project.
            path: of the checkpoint, which is not copied.
            metrics: what it earned, which become metrics of the model and of the run.
            step: of the checkpoint.
            params: what else to show beside it.
        """
        tags = {
            DIGEST: file_digest(path),
            "path": _in_project(path, settings),
            "git_commit": git_commit(settings.project),
            "data_digest": md5_of(bootstrapped_folder(settings) / "manifest.json"),
        }
        model = {
            "name": settings.variant or "default",
            "step": step,
            "tags": tags,
            "params": {key: str(value) for key, value in params.items()},
            "metrics": {key: float(value) for key, value in metrics.items() if value is not None},
        }
        self._append({"model": model})

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._append({"tags": dict(tags)})

    def log_status(self, status: str) -> None:
        """Log that the run goes on (RUNNING) or how it ended."""
        self._append({"status": status})

    def _append(self, event: Mapping[str, object]) -> None:
        journal = self._run.journal
        journal.append(event)
        if journal.failure is not None and not self._said_disk:
            text = f"warning: {journal.path} cannot be written ({journal.failure.strerror})"
            print(f"{text}; what is logged stays in memory until it can", file=sys.stderr, flush=True)
        self._said_disk = journal.failure is not None


@contextlib.contextmanager
def open_run(
    settings: Settings, *, run_id: str | None = None, results: bool = False
) -> Iterator[MlflowTracker]:
    """Open the run `run_id`, or a new one if that is None or not in this store.

    The run ends FINISHED, KILLED if the process is interrupted, or FAILED on any other error.

    Args:
        settings: name the store, and the project.
        run_id: of the run to continue. If the store is away just now, what is logged waits in files.
        results: the metrics are results, of which a changed one is logged again, and no curves.

    Raises:
        KilosegError: the store refuses, or a new run is wanted and it does not answer.
    """
    given, client, fresh = run_id, None, False
    try:
        client = open_client(settings)
        run_id = existing_run(client, settings, given)
        if fresh := run_id is None:
            run_id = create_run(client, settings, _place(settings, given or ""))
    except (*STORE_ERRORS, KilosegError) as error:
        problem = explain(settings, error)
        if given is None or not isinstance(problem, StoreUnavailable):
            raise problem from None
        client, run_id = None, given
    assert run_id is not None
    with unsent_run(settings, _place(settings, run_id), name=given or run_id) as run:
        delivery = Delivery(settings, run, client, fresh=fresh)
        tracker = MlflowTracker(run, results=results)
        mirror = mirror_of(delivery, "the work")
        mirror.start()
        tracker.log_status("RUNNING")
        status = "FAILED"
        try:
            yield tracker
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            tracker.log_status(status)
            if status == "KILLED":
                _close(settings, mirror, delivery, _KILLED_PATIENCE_SECONDS, slow=1.0)
            else:
                _close(settings, mirror, delivery, PATIENCE_SECONDS)


def _close(
    settings: Settings,
    mirror: Mirror,
    delivery: Delivery,
    patience: float,
    *,
    slow: float = SLOW_SECONDS,
) -> None:
    """Send the rest, and what earlier processes left; say what to do if that fails."""
    end = time.monotonic() + patience
    arrived = mirror.close(patience=patience, slow=slow)
    for text in delivery.refused:
        print(f"warning: MLflow does not take a part of what was logged: {text}", file=sys.stderr, flush=True)
    if arrived:
        delivery.run.remove()
        with contextlib.suppress(KilosegError):
            send_unsent(settings, patience=max(end - time.monotonic(), 0.0), slow=slow)
        return
    print(
        f"warning: not everything reached MLflow; it waits in {delivery.run.folder.parent}. What sends it: "
        "pipeline sync (the next stage or training does it too)",
        file=sys.stderr,
        flush=True,
    )


def log_to_finished_run(
    settings: Settings,
    run_id: str | None,
    path: Path,
    metrics: Mapping[str, float | None] | None = None,
    *,
    patience: float = PATIENCE_SECONDS,
) -> bool:
    """Add a file, such as the report, and numbers to a run that has ended; skip an unknown run.

    Args:
        settings: name the store.
        run_id: of the run, or None for none.
        path: the file.
        metrics: results by name, of which a changed one is logged again.
        patience: seconds to wait for a store that is away; then the file waits in `mlflow-unsent`.

    Returns:
        Whether it was sent.
    """
    if run_id is None:
        return True
    with _finished_run(settings, run_id, patience) as tracker:
        tracker.log_artifact(path)
        if metrics:
            tracker.log_metrics(metrics, step=0)
    return tracker.arrived


def log_seeds(settings: Settings, run_ids: Sequence[str | None], summary: Mapping[str, object]) -> None:
    """Make the runs of a variant's other seeds children of its own, which gets the mean and spread of mIoU.

    Args:
        settings: name the store.
        run_ids: of all seeds, the variant's own first; None for a run that is not known.
        summary: "miou" and "miou_std", where they are defined, and "seeds".
    """
    own, *others = run_ids
    if own is None:
        return
    patience = PATIENCE_SECONDS
    means = {"val/miou_mean": summary.get("miou"), "val/miou_std": summary.get("miou_std")}
    for run_id in (own, *others):
        if run_id is None:
            continue
        with _finished_run(settings, run_id, patience) as tracker:
            if run_id != own:
                tracker.log_tags({PARENT: own})
                continue
            known = {name: float(str(value)) for name, value in means.items() if value is not None}
            tracker.log_metrics({**known, "seeds": float(str(summary["seeds"]))}, step=0)
        patience = patience if tracker.arrived else 0.0  # wait once for a store that is away


@contextlib.contextmanager
def _finished_run(settings: Settings, run_id: str, patience: float) -> Iterator[MlflowTracker]:
    """Open a run that has ended, to add to it; afterwards the tracker knows whether that `arrived`."""
    place = RunPlace(store_name(settings), settings.tracking.experiment, run_id)
    with unsent_run(settings, place) as run:
        tracker = MlflowTracker(run, results=True)
        yield tracker
        mirror = mirror_of(Delivery(settings, run), "the work")
        if mirror.close(patience=patience):
            run.remove()
        tracker.arrived = mirror.complete


def _place(settings: Settings, run_id: str) -> RunPlace:
    variant = settings.variant or "default"
    tags = {**run_tags(settings), "variant": variant, NOTE_TAG: variant_note(variant, settings.flat())}
    return RunPlace(store_name(settings), settings.tracking.experiment, run_id, variant, tags)


def run_tags(settings: Settings) -> dict[str, str]:
    """Return the tags that describe the origin of a run."""
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": "kiloseg",
        "mlflow.source.type": "PROJECT",
        "git_commit": git_commit(settings.project),
        "dvc_lock": md5_of(settings.project / "dvc.lock"),
    }
    if os.environ.get("DVC_EXP_NAME"):
        tags["dvc_experiment"] = os.environ["DVC_EXP_NAME"]
    if len(tags["git_commit"]) == 40:
        tags["mlflow.source.git.commit"] = tags["git_commit"]
    return tags


def _in_project(path: Path, settings: Settings) -> str:
    """Return the path from the project's folder, if it lies in there."""
    return str(path.relative_to(settings.project) if path.is_relative_to(settings.project) else path)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        return "unknown"
