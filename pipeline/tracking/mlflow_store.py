"""Open the MLflow store: MLFLOW_TRACKING_URI, or `mlflow.db` (SQLite) in the project with its artifacts.

Whatever is wrong with it ends in one message that says what; `StoreUnavailable` is what may pass by itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.paths import artifacts_folder
from pipeline.config.schema import Settings
from pipeline.runtime.errors import KilosegError
from pipeline.runtime.locks import locked
from pipeline.tracking.tracker import own_store, sqlite_path, tracking_uri

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read by mlflow when it is imported
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it prints passwords of the address

import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from requests.exceptions import RequestException

from pipeline.tracking.relocate import relocate_artifacts
from pipeline.tracking.saved_view import experiment_tags

STORE_ERRORS = (MlflowException, RequestException, sqlalchemy.exc.SQLAlchemyError, ImportError, OSError)
_CREATION_SECONDS = 120.0
_LONGEST_PATH = 504  # SQLite adds "-journal" and takes 512
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}


class StoreUnavailable(KilosegError):
    """Report a store that does not answer now, and may later: what is tracked meanwhile waits in files."""


def open_client(settings: Settings) -> MlflowClient:
    """Open a client of the store that gives up on a silent server in seconds, not minutes.

    Processes that start at once in a fresh project wait for the one that makes the store.

    Raises:
        KilosegError: it is no store, or a database that refuses us. (A server is checked by the first call.)
    """
    for name in ("alembic", "mlflow.utils.uri"):
        logging.getLogger(name).setLevel(logging.WARNING)  # one line per database migration otherwise
    for name in ("mlflow.store.db.utils", "urllib3.connectionpool", "mlflow.utils.rest_utils"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they print tracebacks of what we say in a line
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)  # else an unreachable server hangs for minutes
    uri = tracking_uri(settings)
    path = sqlite_path(uri)
    _check_length(path)
    try:
        with _alone(path), _without_stray_folders(uri, path):
            if uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES:
                _try_database(uri)
            client = MlflowClient(tracking_uri=uri)
            if own_store(settings):
                relocate_artifacts(uri, artifacts_folder(settings))
            return client
    except STORE_ERRORS as error:
        raise explain(settings, error) from error


def _check_length(path: Path | None) -> None:
    length = 0 if path is None else len(os.fsencode(path.absolute()))
    if length > _LONGEST_PATH:
        raise KilosegError(
            "the path of the MLflow store is longer than SQLite takes",
            where=path,
            found=f"{length} bytes",
            allowed=f"at most {_LONGEST_PATH} bytes",
            hint="move the project to a shorter path, or name another store in MLFLOW_TRACKING_URI",
        )


def experiment_id(client: MlflowClient, settings: Settings) -> str:
    """Return the id of the settings' experiment; create it if it does not exist.

    Raises:
        KilosegError: it was deleted, or the store refuses or does not answer.
    """
    name = settings.tracking.experiment
    try:
        found = client.get_experiment_by_name(name)
        if found is None:
            found_id = _create_experiment(client, settings)
            return found_id if found_id is not None else experiment_id(client, settings)
    except STORE_ERRORS as error:
        raise explain(settings, error) from error
    if found.lifecycle_stage == "active":
        _describe(client, found)
        return str(found.experiment_id)
    raise KilosegError(
        "the MLflow experiment was deleted",
        where=tracking_uri(settings),
        found=f"{name}, id {found.experiment_id}, among the deleted experiments",
        hint=f"restore it: mlflow experiments restore --experiment-id {found.experiment_id} (with this "
        "address in MLFLOW_TRACKING_URI); or name another one in tracking.experiment",
    )


def _describe(client: MlflowClient, experiment: Experiment) -> None:
    """Set the description and the shipped view of an experiment that lacks them; a user's own are kept."""
    with contextlib.suppress(*STORE_ERRORS):  # nothing depends on them
        for key, value in experiment_tags().items():
            if key not in experiment.tags:
                client.set_experiment_tag(experiment.experiment_id, key, value)


def _create_experiment(client: MlflowClient, settings: Settings) -> str | None:
    """Create the experiment; None if another process has just done so."""
    store = sqlite_path(tracking_uri(settings))  # a server chooses its own
    artifacts = None if store is None else store.absolute().parent / artifacts_folder(settings).name
    location = None if artifacts is None else artifacts.as_uri()
    try:
        name, tags = settings.tracking.experiment, experiment_tags()
        return str(client.create_experiment(name, artifact_location=location, tags=tags))
    except MlflowException as error:
        if error.error_code == "RESOURCE_ALREADY_EXISTS":
            return None
        raise


@contextlib.contextmanager
def _alone(path: Path | None) -> Iterator[None]:
    """Keep other processes from making the SQLite store too, by a lock of its folder (no file is left)."""
    with contextlib.ExitStack() as held:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(KilosegError, OSError):  # a file system without locks
                held.enter_context(locked(path.parent, folder=True, wait_seconds=_CREATION_SECONDS))
        yield


@contextlib.contextmanager
def _without_stray_folders(uri: str, path: Path | None) -> Iterator[None]:
    """Remove the folders that MLflow makes for a store in `a%20b`: it takes the address for the path."""
    wrong = Path(uri.removeprefix("sqlite:///")).parent
    absent = [] if path is None or wrong == path.parent else [wrong, *wrong.parents]
    absent = [folder for folder in absent if not folder.exists()]
    try:
        yield
    finally:
        for folder in absent:  # the deepest first
            with contextlib.suppress(OSError):
                folder.rmdir()


def _try_database(uri: str) -> None:
    """Ask the database once: MLflow itself would try for minutes."""
    engine = sqlalchemy.create_engine(uri)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def explain(settings: Settings, error: BaseException) -> KilosegError:
    """Return what is wrong with the store as one message with the way out."""
    if isinstance(error, KilosegError):
        return error
    text = " ".join(str(error).split())
    where, found = tracking_uri(settings), _short(text)
    status = error.get_http_status_code() if isinstance(error, MlflowException) else 0
    if not isinstance(error, STORE_ERRORS):
        return StoreUnavailable("tracking fails", where=where, found=f"{type(error).__name__}: {found}")
    if isinstance(error, ImportError):
        return KilosegError(
            "the driver of this database is not installed",
            where=where,
            found=found,
            hint="install it, for example psycopg2-binary for postgresql:// or pymysql for mysql+pymysql://",
        )
    if status in (401, 403) or re.search(r"password authentication failed|Access denied for user", text):
        return KilosegError(
            "the MLflow store wants other credentials",
            where=where,
            found=found,
            hint="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        )
    for pattern, what, hint, passing in _CASES:
        if re.search(pattern, text, re.IGNORECASE):
            return (StoreUnavailable if passing else KilosegError)(what, where=where, found=found, hint=hint)
    if status == 404 or "valid JSON format" in text:
        hint = "check MLFLOW_TRACKING_URI: host, port and path, without /#/experiments"
        return KilosegError("no MLflow server answers there", where=where, found=found, hint=hint)
    if _is_no_address(where, error):
        return KilosegError(
            "the MLflow store does not answer: MLFLOW_TRACKING_URI is no address of one",
            where=where,
            allowed="http://HOST:PORT, https://HOST, sqlite:////FOLDER/mlflow.db, postgresql://HOST/NAME",
            hint="correct it, or unset it to use mlflow.db in the project",
        )
    return StoreUnavailable(
        "the MLflow store does not answer",
        where=where,
        found=found,
        hint="check MLFLOW_TRACKING_URI and that its server runs, or unset it to use mlflow.db",
    )


_CASES = (
    (
        "must be in (the )?'?active'? state",
        "the run was deleted in MLflow",
        "restore it: mlflow runs restore --run-id ID; else the next command makes another one of it",
        True,
    ),
    (
        "database is locked",
        "the MLflow store is locked by another program",
        "end the program that holds the database, or wait for it, and run the same command again",
        True,
    ),
    (
        "disk is full|no space left|disk quota",
        "the disk of the MLflow store is full",
        "free some space and run the same command again",
        True,
    ),
    (
        "readonly database|read-only file|permission denied|unable to open|not a directory|file exists",
        "the MLflow store does not answer: its file cannot be opened",
        "make the file and its folder writable, or name another store in MLFLOW_TRACKING_URI",
        False,
    ),
    (
        "not a database|malformed",
        "the file of the MLflow store is no database",
        "move it away: the next run makes a new one",
        False,
    ),
    (
        "out-of-date database schema|can't locate revision",
        "the MLflow store is of another version of MLflow",
        "back it up and run `mlflow db upgrade` with its address, or install the version that made it",
        False,
    ),
    (
        "too many 5|error code 5|temporarily.unavailable|internal.error|too many 429",
        "the MLflow server does not answer but with errors",
        "look at the server's log; run the same command again when it works",
        True,
    ),
)


def _is_no_address(uri: str, error: BaseException) -> bool:
    kinds = (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError)
    known = uri.startswith(("http://", "https://", "databricks", "uc:", "file:", *DATABASE_ENGINES))
    return isinstance(error, kinds) or type(error).__name__ == "InvalidUrlException" or not known


def _short(text: str) -> str:
    """Return the part of a library's message that says what happened."""
    for pattern in (r"\[Errno -?\d+\] [^'\")]*", r"\([\w.]*Error\) [^\[(]*"):
        found = re.search(pattern, text)
        if found is not None:
            return found[0].strip()
    return text[:300].strip()
