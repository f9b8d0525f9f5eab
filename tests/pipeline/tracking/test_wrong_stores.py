"""Stores that are wrong from the start: each refused in one sentence. And passwords, which nobody sees."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import shutil
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline.config.load import load_settings
from pipeline.config.schema import Settings
from pipeline.runtime.errors import KilosegError
from pipeline.runtime.secrets import hide_secrets
from pipeline.tracking import mlflow_tracker
from pipeline.tracking.mlflow_store import StoreUnavailable, explain
from pipeline.tracking.mlflow_tracker import open_run
from pipeline.tracking.tracker import sqlite_uri, tracking_uri
from tests.command import pipeline_here
from tests.pipeline.tracking.stores import Store, free_port

PASSWORD = "s3cret:p@ss"
ENCODED = "s3cret%3Ap%40ss"


@pytest.fixture
def settings(project: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    shutil.copy(empty_store, project / "mlflow.db")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return load_settings(project / "params.yaml", variant="exact")


def refusal(settings: Settings) -> KilosegError:
    with pytest.raises(KilosegError) as problem, open_run(settings):
        pass
    return problem.value


@contextlib.contextmanager
def answering(status: int, body: str = "no") -> Iterator[str]:
    """A web server that answers everything alike; its address."""

    class Alike(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = answer

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Alike) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_deleted_experiment_says_how_to_restore_it(settings: Settings) -> None:
    client = MlflowClient(tracking_uri(settings))
    number = client.create_experiment("kiloseg")
    client.delete_experiment(number)
    problem = refusal(settings)
    assert problem.what == "the MLflow experiment was deleted"
    assert f"mlflow experiments restore --experiment-id {number}" in str(problem.hint)
    assert "tracking.experiment" in str(problem.hint)
    client.restore_experiment(number)
    with open_run(settings):
        pass


@pytest.mark.parametrize(
    ("status", "body", "what", "way_out"),
    [
        (401, "no", "wants other credentials", "MLFLOW_TRACKING_PASSWORD"),
        (403, '{"error_code": "PERMISSION_DENIED", "message": "no"}', "wants other credentials", "_TOKEN"),
        (404, "<html>", "no MLflow server answers there", "port"),
        (200, "<html>", "no MLflow server answers there", "port"),
        (500, "broken", "does not answer but with errors", "server's log"),
        (503, "busy", "does not answer but with errors", "server's log"),
    ],
)
def test_what_a_server_answers_is_told(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    body: str,
    what: str,
    way_out: str,
) -> None:
    with answering(status, body) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        problem = refusal(settings)
    assert what in problem.what
    assert way_out in str(problem.hint)
    assert problem.where == uri
    assert isinstance(problem, StoreUnavailable) == (status >= 500)


def test_a_continued_run_is_refused_too_where_waiting_cannot_help(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(401) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(KilosegError, match="credentials"), open_run(settings, run_id="1" * 32):
            pass


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("http://127.0.0.1:1", "the MLflow store does not answer"),
        ("htp://typo", "is no address of one"),
        ("http:127.0.0.1", "is no address of one"),
        ("postgresql://u:pw@127.0.0.1:1/x", "the driver of this database is not installed"),
        ("mysql+nothing://127.0.0.1:1/x", "is no address of one"),
        ("sqlite:////dev/null/mlflow.db", "its file cannot be opened"),
    ],
)
def test_an_address_that_is_wrong_is_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, uri: str, what: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    problem = refusal(settings)
    assert what in problem.what
    assert problem.where == uri.replace("u:pw@", "")


def test_a_file_that_is_no_database_and_a_schema_of_another_version_are_told(settings: Settings) -> None:
    with contextlib.closing(sqlite3.connect(settings.project / "mlflow.db")) as store:
        store.execute("update alembic_version set version_num = '0123456789ab'")
        store.commit()
    assert "of another version of MLflow" in refusal(settings).what
    (settings.project / "mlflow.db").write_text("hello" * 1000)
    assert "is no database" in refusal(settings).what


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("(sqlite3.OperationalError) database is locked", "locked by another program"),
        (
            "(a flush) (sqlite3.OperationalError) database or disk is full [SQL: INSERT ...] (https)",
            "disk of the MLflow store is full",
        ),
        ("[Errno 28] No space left on device", "disk of the MLflow store is full"),
    ],
)
def test_what_may_pass_by_itself_is_waited_for(settings: Settings, text: str, what: str) -> None:
    problem = explain(settings, MlflowException(text))
    assert isinstance(problem, StoreUnavailable)
    assert what in problem.what
    assert len(str(problem.found)) < 70


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://anna:pw@host:5000/a", "http://host:5000/a"),
        (
            "at postgresql+psycopg2://u:p/w@db/x, and https://t0ken@h",
            "at postgresql+psycopg2://db/x, and https://h",
        ),
        ("https://h/a?x=1&api_token=abc&y=2#z", "https://h/a?x=1&api_token=***&y=2#z"),
        ("https://h/a?sslpassword=abc", "https://h/a?sslpassword=***"),
        ("nothing@here: fine?token", "nothing@here: fine?token"),
        ("https://host/@v1/page", "https://host/@v1/page"),
        ("redis://:p@ss@host/0", "redis://host/0"),
    ],
)
def test_addresses_are_shown_without_secrets(text: str, shown: str) -> None:
    assert hide_secrets(text) == shown


def test_the_passwords_of_the_environment_are_hidden_wherever_they_stand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://anna:{ENCODED}@host")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0k3n")
    said = hide_secrets(f"a {PASSWORD} b {ENCODED} c t0k3n")
    assert said == "a *** b *** c ***"
    assert PASSWORD not in str(KilosegError("x", where=PASSWORD, found=f"[{PASSWORD}]", hint=PASSWORD))


@pytest.mark.parametrize("scheme", ["http", "postgresql", "mysql+nothing"])
def test_no_command_prints_a_password(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], scheme: str
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda path, command, environment: started.append(command))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://anna:{ENCODED}@127.0.0.1:{free_port()}/x")
    params = (settings.project / "params.yaml").read_text()
    space = "tune: {variant: essnet, space: {model.embedding_dim: {choice: [4]}}}\n"
    (settings.project / "params.yaml").write_text(params + space)
    print(refusal(settings))
    for command in (["tune"], ["doctor"], ["ui"], ["sync"]):
        pipeline_here(*command)
    said = "".join(capfd.readouterr()) + json.dumps(started)
    assert "127.0.0.1" in said
    assert all(secret not in said for secret in ("s3cret", PASSWORD, ENCODED, "anna"))


def test_no_file_and_no_run_holds_a_password(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server goes away in the middle of a run, and is back for another."""
    shared = settings.project / "shared"
    shared.mkdir()
    shutil.copy(settings.project / "mlflow.db", shared)
    store = Store(shared, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri.replace("//", f"//anna:{ENCODED}@"))
    monkeypatch.setattr(mlflow_tracker, "PATIENCE_SECONDS", 0.0)
    server = contextlib.ExitStack()
    server.enter_context(store.answering())
    with open_run(settings) as tracker:
        server.close()
        tracker.log_params(settings.flat())
        tracker.log_metrics({"train/loss": 1.0}, 1)
    assert list((settings.project / "mlflow-unsent").glob("*/events.jsonl"))
    assert_nowhere(settings.project)
    with store.answering(), open_run(settings):
        pass
    assert MlflowClient(sqlite_uri(shared / "mlflow.db")).get_run(tracker.run_id).data.params
    assert_nowhere(settings.project)
    assert "s3cret" not in "".join(capfd.readouterr())


def assert_nowhere(folder: Path) -> None:
    forms = [PASSWORD, ENCODED, base64.b64encode(f"anna:{PASSWORD}".encode()).decode()]
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert len(paths) > 2
    for path in paths:
        content = path.read_bytes()
        assert all(form.encode() not in content for form in forms), path


def test_a_server_that_never_answers_is_given_up(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        assert isinstance(refusal(settings), StoreUnavailable)
