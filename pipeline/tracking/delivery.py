"""Deliver what a run has logged to the MLflow store, where the run is found, or made if it was lost."""

from __future__ import annotations

from mlflow import MlflowClient

from pipeline.config.schema import Settings
from pipeline.tracking.mirror import SLOW_SECONDS, Mirror
from pipeline.tracking.mlflow_run import MlflowRun, find_run, is_active
from pipeline.tracking.mlflow_store import StoreUnavailable, experiment_id, explain, open_client
from pipeline.tracking.unsent import RunPlace, UnsentRun, abandoned_run, store_name, unsent_folders


class Delivery:
    """Send one run's events to the store, and find or make the run there first.

    Args:
        settings: name the store.
        run: what to send.
        client: of the store, where the run is known to be there.
        fresh: whether the run has just been made.
    """

    def __init__(
        self, settings: Settings, run: UnsentRun, client: MlflowClient | None = None, *, fresh: bool = False
    ) -> None:
        self.settings, self.run = settings, run
        self._target = None if client is None else self._target_of(client, resumed=not fresh)
        self.unknown = False
        """the store has no such run, and none is to be made"""

    def send(self) -> None:
        """Send what is new.

        Raises:
            KilosegError, or one of STORE_ERRORS: the store does not answer or refuses.
        """
        if self._target is None and not self.unknown:
            self._target = self._find()
        if self._target is not None:
            self._target.send(self.run.journal.events)

    @property
    def refused(self) -> list[str]:
        """Return the store's words for what it does not take."""
        return [] if self._target is None else self._target.refused

    def _find(self) -> MlflowRun | None:
        client = open_client(self.settings)
        run_id = existing_run(client, self.settings, self.run.place.run_id)
        if run_id is None and self.run.place.name is None:
            self.unknown = True
            return None
        if run_id is None:
            run_id = create_run(client, self.settings, self.run.place)
        if run_id != self.run.place.run_id:
            self.run.moved_to(run_id)
        return self._target_of(client, resumed=True)

    def _target_of(self, client: MlflowClient, *, resumed: bool) -> MlflowRun:
        files = self.run.folder / "files"
        return MlflowRun(client, self.run.place.run_id, resumed=resumed, files=files)


def mirror_of(delivery: Delivery, what: str) -> Mirror:
    """Return the thread that sends a run, not started; `what` goes on while the store is away."""
    settings = delivery.settings
    return Mirror(delivery.send, what=what, explain=lambda error: explain(settings, error), interval=1.0)


def send_unsent(
    settings: Settings, *, patience: float = 0.0, slow: float = SLOW_SECONDS
) -> tuple[int, list[str]]:
    """Send what ended processes have left in `mlflow-unsent`.

    Args:
        settings: name the store and the project.
        patience: seconds to wait for a store that is away.
        slow: seconds to wait beyond them for calls that have begun, for each run.

    Returns:
        The number of runs that were sent, and the other stores that runs wait for.

    Raises:
        KilosegError: the store does not answer or refuses; what was not sent waits on.
    """
    sent, others, name = 0, set(), store_name(settings)
    for folder in unsent_folders(settings):
        with abandoned_run(folder) as run:
            if run is None:
                continue
            if run.place.store != name:
                others.add(run.place.store or "the project's own")
                continue
            if run.place.name is not None and not run.ended:
                run.journal.append({"status": "KILLED"})  # its process was, before it could say so
            delivery = Delivery(settings, run)
            mirror = mirror_of(delivery, "the work")
            if not mirror.close(patience=patience, slow=slow):
                raise mirror.failure or StoreUnavailable("the MLflow store is too slow", where=name)
            run.remove()
            sent += 1
    return sent, sorted(others)


def existing_run(client: MlflowClient, settings: Settings, run_id: str | None) -> str | None:
    """Return the id under which the store has a run, or None.

    A run that was lost or deleted, and made again, is found by the id that it had.

    Raises:
        One of STORE_ERRORS: the store does not answer.
    """
    if run_id is None or is_active(client, run_id):
        return run_id
    found = client.get_experiment_by_name(settings.tracking.experiment)
    if found is None or found.lifecycle_stage != "active":
        return None
    return next(iter(find_run(client, str(found.experiment_id), {"continues": run_id})), None)


def create_run(client: MlflowClient, settings: Settings, place: RunPlace) -> str:
    """Create a run; one that replaces another, of the id in `place`, is found by it."""
    tags = {**place.tags, **({"continues": place.run_id} if place.run_id else {})}
    run = client.create_run(experiment_id(client, settings), run_name=place.name, tags=tags)
    return str(run.info.run_id)
