"""A store that goes away, is locked or broken: the work goes on, and its numbers arrive once, in order."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.config.load import load_settings
from pipeline.config.schema import Settings
from pipeline.runtime.errors import KilosegError
from pipeline.runtime.signals import Interrupted
from pipeline.tracking import delivery, mlflow_tracker
from pipeline.tracking.mlflow_tracker import log_to_finished_run, open_run
from pipeline.tracking.tracker import sqlite_uri, tracking_uri
from stages import evaluate as evaluate_stage
from stages import train as train_stage
from tests.command import pipeline_here
from tests.paths import ROOT
from tests.pipeline.tracking.stores import Store

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(project: Path, empty_store: Path) -> Settings:
    """Of a project with its own store."""
    shutil.copy(empty_store, project / "mlflow.db")
    return load_settings(project / "params.yaml", variant="exact")


@pytest.fixture
def store(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A server over a store beside the project, named by MLFLOW_TRACKING_URI."""
    shared = settings.project / "shared"
    shared.mkdir()
    shutil.copy(settings.project / "mlflow.db", shared / "mlflow.db")
    store = Store(shared, monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return store


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a process does not wait for a store that is away."""
    monkeypatch.setattr(mlflow_tracker, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(mlflow_tracker, "_KILLED_PATIENCE_SECONDS", 0.0)


def only_run(uri: str) -> Run:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("kiloseg")
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def points(uri: str, run: Run, metric: str) -> list[tuple[int, float]]:
    """Steps and values, in the order of their arrival."""
    return [
        (point.step, point.value) for point in MlflowClient(uri).get_metric_history(run.info.run_id, metric)
    ]


def shared_uri(settings: Settings) -> str:
    return sqlite_uri(settings.project / "shared" / "mlflow.db")


def wait_for(true: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.training
@pytest.mark.slow
def test_a_training_goes_on_without_its_server_and_an_evaluation_too_and_sync_sends_all(
    settings: Settings, store: Store, impatient: None, capfd: pytest.CaptureFixture[str]
) -> None:
    server = contextlib.ExitStack()
    server.enter_context(store.answering())
    real = train_stage.open_run

    @contextlib.contextmanager
    def leaving(*arguments: object, **options: object) -> Iterator[object]:
        with real(*arguments, **options) as tracker:
            tracker.log_metrics({"train/loss": 9.0}, 0)
            assert store.curves_came.wait(60)
            server.close()  # in the middle of the training, before its first step
            yield tracker

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_stage, "open_run", leaving)
        train_stage.main("exact")
    evaluate_stage.main("exact")
    said = capfd.readouterr().err
    assert "does not answer" in said
    assert "pipeline sync" in said
    assert "Traceback" not in said
    assert (settings.project / "results" / "exact" / "metrics.json").is_file()
    assert only_run(shared_uri(settings)).data.metrics == {"train/loss": 9.0}

    assert pipeline_here("sync") == 1  # still away
    assert "does not answer" in capfd.readouterr().err
    with store.answering():
        assert pipeline_here("sync") == 0
        assert "sent: 1" in capfd.readouterr().out
        assert pipeline_here("sync") == 0
        assert "nothing waits" in capfd.readouterr().out
    run = only_run(shared_uri(settings))
    assert run.info.status == "FINISHED"
    assert [step for step, _ in points(shared_uri(settings), run, "train/loss")] == list(range(9))
    assert [step for step, _ in points(shared_uri(settings), run, "holdout/miou")] == [4, 8]
    assert len(points(shared_uri(settings), run, "val/miou")) == 1
    files = {file.path for file in MlflowClient(shared_uri(settings)).list_artifacts(run.info.run_id)}
    assert "per_class.json" in files
    assert run.data.params["loss.name"] == "exact"
    assert not (settings.project / "mlflow-unsent").exists()


def test_no_call_waits_and_what_comes_after_an_outage_arrives_in_order_and_once(
    settings: Settings, store: Store
) -> None:
    with contextlib.ExitStack() as back, contextlib.ExitStack() as server:
        server.enter_context(store.answering())
        with open_run(settings) as tracker:
            for step in range(1, 4):
                tracker.log_metrics({"train/loss": 1.0 / step}, step)
            wait_for(store.curves_came.is_set)
            server.close()
            for step in range(4, 2000):
                tracker.log_metrics({"train/loss": 1.0 / step}, step)
            tracker.log_params({"late": 1})
            back.enter_context(store.answering())
        run = only_run(shared_uri(settings))
    assert points(shared_uri(settings), run, "train/loss") == [(step, 1.0 / step) for step in range(1, 2000)]
    assert run.data.params == {"late": "1"}
    assert not (settings.project / "mlflow-unsent").exists()


def test_a_server_that_fails_for_a_while_loses_nothing(
    settings: Settings, store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    with store.answering():
        with open_run(settings) as tracker:
            store.status = "500 broken"
            tracker.log_metrics({"train/loss": 1.0}, 1)
            wait_for(lambda: "does not answer" in capfd.readouterr().err)
            store.status = ""
        assert points(shared_uri(settings), only_run(shared_uri(settings)), "train/loss") == [(1, 1.0)]


@pytest.mark.parametrize("known", ["folder kept", "folder lost"])
def test_a_resumed_training_repeats_no_point(
    settings: Settings, store: Store, impatient: None, known: str
) -> None:
    """Stopped at step 5 with the store away since step 3, it goes on from its checkpoint at step 2."""

    def first(server: contextlib.ExitStack, run_ids: list[str]) -> None:
        with open_run(settings) as tracker:
            run_ids.append(tracker.run_id)
            for step in (1, 2, 3):
                tracker.log_metrics({"train/loss": float(step)}, step)
            wait_for(
                lambda: len(points(shared_uri(settings), only_run(shared_uri(settings)), "train/loss")) == 3
            )
            server.close()
            for step in (4, 5):
                tracker.log_metrics({"train/loss": float(step)}, step)
            raise Interrupted(15)

    server, run_ids = contextlib.ExitStack(), []
    server.enter_context(store.answering())
    with pytest.raises(Interrupted):
        first(server, run_ids)
    assert (settings.project / "mlflow-unsent").exists()
    if known == "folder lost":
        shutil.rmtree(settings.project / "mlflow-unsent")
    with open_run(settings, run_id=run_ids[0]) as tracker:  # the store is still away
        assert tracker.run_id == run_ids[0]
        for step in (3, 4, 5, 6):
            tracker.log_metrics({"train/loss": float(step)}, step)
    with store.answering():
        assert delivery.send_unsent(settings, patience=30.0) == (1, [])
    run = only_run(shared_uri(settings))
    assert points(shared_uri(settings), run, "train/loss") == [(step, float(step)) for step in range(1, 7)]
    assert run.info.status == "FINISHED"


def test_a_database_that_another_program_holds_does_not_stop_the_work(settings: Settings) -> None:
    other = sqlite3.connect(settings.project / "mlflow.db", check_same_thread=False)
    with open_run(settings) as tracker:
        tracker.log_metrics({"train/loss": 1.0}, 1)
        uri = tracking_uri(settings)
        wait_for(lambda: len(points(uri, only_run(uri), "train/loss")) == 1)
        other.execute("begin exclusive")
        began = time.monotonic()
        for step in range(2, 50):
            tracker.log_metrics({"train/loss": 1.0}, step)
        assert time.monotonic() - began < 15  # SQLite waits for 20 s
        other.rollback()
        other.close()
    assert [step for step, _ in points(uri, only_run(uri), "train/loss")] == list(range(1, 50))


def test_a_killed_process_leaves_its_values_and_the_next_one_sends_them(
    settings: Settings, store: Store, impatient: None
) -> None:
    with store.answering(), open_run(settings, run_id=None) as tracker:
        killed = tracker.run_id
    place = mlflow_tracker.RunPlace(store.uri, "kiloseg", killed, "exact", {})
    with mlflow_tracker.unsent_run(settings, place) as run:
        mlflow_tracker.MlflowTracker(run).log_metrics({"train/loss": 1.0}, 1)
    with store.answering():
        with open_run(settings) as tracker:
            assert tracker.run_id != killed
        client = MlflowClient(store.uri)
        assert client.get_run(killed).data.metrics == {"train/loss": 1.0}
        assert client.get_run(killed).info.status == "KILLED"
    assert not (settings.project / "mlflow-unsent").exists()


def test_what_waits_for_another_store_is_not_sent_to_this_one(
    settings: Settings,
    store: Store,
    impatient: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server = contextlib.ExitStack()
    server.enter_context(store.answering())
    with open_run(settings) as tracker:
        server.close()
        tracker.log_metrics({"train/loss": 1.0}, 1)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert pipeline_here("sync") == 1
    assert store.uri in capfd.readouterr().err
    assert MlflowClient(tracking_uri(settings)).get_experiment_by_name("kiloseg") is None


def test_a_new_training_needs_its_store_and_a_continued_one_does_not(
    settings: Settings, store: Store, impatient: None
) -> None:
    with pytest.raises(KilosegError, match="does not answer"), open_run(settings):
        pass
    with open_run(settings, run_id="1" * 32) as tracker:
        tracker.log_metrics({"train/loss": 1.0}, 1)
    with store.answering():
        assert delivery.send_unsent(settings, patience=30.0) == (1, [])
        run = only_run(store.uri)  # the store had none of this id: it was made
        assert run.data.tags["continues"] == "1" * 32
        with open_run(settings, run_id="1" * 32) as tracker:
            assert tracker.run_id == run.info.run_id


def test_a_report_waits_for_the_server_and_an_unknown_run_is_skipped(
    settings: Settings, store: Store, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    page.write_text("<p>")
    with store.answering(), open_run(settings) as tracker:
        pass
    assert not log_to_finished_run(settings, tracker.run_id, page, patience=0.0)
    assert not log_to_finished_run(settings, "2" * 32, page, patience=0.0)
    with store.answering():
        assert delivery.send_unsent(settings, patience=30.0) == (2, [])
        client = MlflowClient(store.uri)
        assert [file.path for file in client.list_artifacts(tracker.run_id)] == ["report.html"]
        assert only_run(store.uri).info.status == "FINISHED"


def test_a_full_disk_keeps_the_values_in_memory(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from pipeline.tracking import journal

    def full(path: Path, lines: list[str]) -> None:
        raise OSError(28, "No space left on device")

    with open_run(settings) as tracker:
        monkeypatch.setattr(journal, "append_events", full)
        tracker.log_metrics({"train/loss": 1.0}, 1)
        tracker.log_metrics({"train/loss": 2.0}, 2)
    said = capfd.readouterr().err
    assert said.count("No space left on device") == 1
    uri = tracking_uri(settings)
    assert points(uri, only_run(uri), "train/loss") == [(1, 1.0), (2, 2.0)]


@pytest.mark.process
@pytest.mark.slow
def test_processes_that_start_at_once_in_a_fresh_project_all_track(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"data": {"root": "data"}, "variants": {"a": {}}}))
    code = (
        "from pipeline.config.load import load_settings\n"
        "from pipeline.tracking.mlflow_tracker import open_run\n"
        "with open_run(load_settings(variant='a')) as tracker: tracker.log_metrics({'train/loss': 1.0}, 1)\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-c", code]
    together = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in together]
    assert [process.returncode for process in together] == [0, 0], said
    client = MlflowClient(sqlite_uri(tmp_path / "mlflow.db"))
    experiment = client.get_experiment_by_name("kiloseg")
    runs = client.search_runs([experiment.experiment_id])
    assert [(run.info.status, run.data.metrics) for run in runs] == [("FINISHED", {"train/loss": 1.0})] * 2
