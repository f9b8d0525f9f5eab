"""Runs in a real SQLite store: opened, continued, ended, and what they hold."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import ViewType

from pipeline.config.load import load_settings
from pipeline.config.paths import bootstrapped_folder
from pipeline.config.schema import Settings
from pipeline.runtime.errors import KilosegError
from pipeline.runtime.signals import Interrupted
from pipeline.tracking.mlflow_tracker import log_to_finished_run, open_run
from pipeline.tracking.tracker import tracking_uri


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Settings:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    variants = {"exact": {}, "essnet": {"loss": {"name": "knn"}}}
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump({"data": {"root": "data/tiny"}, "variants": variants})
    )
    return load_settings(tmp_path / "params.yaml", variant="exact")


@pytest.fixture
def client(settings: Settings) -> MlflowClient:
    return MlflowClient(tracking_uri(settings))


def test_one_run_holds_what_training_and_evaluation_say(
    settings: Settings, client: MlflowClient, tmp_path: Path
) -> None:
    manifest = bootstrapped_folder(settings) / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    with open_run(settings) as tracker:
        tracker.log_data(settings, "train", context="training")
        tracker.log_params(settings.flat())
        tracker.log_metrics({"train/loss": 2.0}, 1)
        tracker.log_metrics({"train/loss": 1.0}, 2)
    table = tmp_path / "per_class.csv"
    table.write_text('name,iou\n"a, b",0.5\nc,\n')
    with open_run(settings, run_id=tracker.run_id) as continued:
        continued.log_params(settings.flat())  # again, as a resumed training does
        continued.log_data(settings, "train", context="training")
        continued.log_data(settings, "val", context="evaluation")
        continued.log_metrics({"val/miou": 0.25}, 2)
        continued.log_table(table, "per_class.json")
    experiment = client.get_experiment_by_name("kiloseg")
    runs = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL)
    assert [run.info.run_id for run in runs] == [tracker.run_id]
    (run,) = runs
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "exact"
    assert run.data.params["loss.name"] == "exact"
    assert len(run.data.params) == len(settings.flat())
    assert run.data.metrics == {"train/loss": 1.0, "val/miou": 0.25}
    assert [point.step for point in client.get_metric_history(tracker.run_id, "train/loss")] == [1, 2]
    assert {"variant", "git_commit", "dvc_lock"} <= set(run.data.tags)
    inputs = {used.dataset.name: used.tags[0].value for used in run.inputs.dataset_inputs}
    assert inputs == {"tiny train": "training", "tiny val": "evaluation"}
    assert len(run.inputs.dataset_inputs) == 2
    stored = Path(client.download_artifacts(tracker.run_id, "per_class.json", str(tmp_path)))
    assert json.loads(stored.read_text()) == {
        "columns": ["name", "iou"],
        "data": [["a, b", 0.5], ["c", None]],
    }
    assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(settings.project)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeError("broken"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (Interrupted(signal.SIGTERM), "KILLED"),
        (KilosegError("no"), "FAILED"),
    ],
)
def test_a_run_that_does_not_finish_says_so(
    settings: Settings, client: MlflowClient, error: BaseException, status: str
) -> None:
    run_ids = []

    def work() -> None:
        with open_run(settings) as tracker:
            run_ids.append(tracker.run_id)
            raise error

    with pytest.raises(type(error)):
        work()
    assert client.get_run(run_ids[0]).info.status == status


def test_a_run_unknown_to_the_store_is_replaced_by_a_new_one(
    settings: Settings, client: MlflowClient
) -> None:
    with open_run(settings, run_id="0" * 32) as tracker:
        assert tracker.run_id != "0" * 32
    client.delete_run(tracker.run_id)
    with open_run(settings, run_id=tracker.run_id) as other:
        assert other.run_id != tracker.run_id


def test_the_report_reaches_runs_that_have_ended(settings: Settings, client: MlflowClient) -> None:
    with open_run(settings) as tracker:
        pass
    report = settings.project / "report.html"
    report.write_text("<p>")
    log_to_finished_run(settings, tracker.run_id, report)
    log_to_finished_run(settings, None, report)
    assert [entry.path for entry in client.list_artifacts(tracker.run_id)] == ["report.html"]
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_a_server_that_does_not_answer_is_one_clear_error(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        pytest.raises(KilosegError, match=r"does not answer(.|\n)*127.0.0.1:9(.|\n)*MLFLOW_TRACKING_URI"),
        open_run(settings),
    ):
        pass
