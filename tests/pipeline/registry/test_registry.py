"""Registered, served over HTTP and traced: a real checkpoint, a real store, MLflow's own server."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from PIL import Image

from pipeline.checkpoint.format import load_checkpoint
from pipeline.config.load import load_settings
from pipeline.config.paths import best_checkpoint_file, bootstrapped_folder
from pipeline.config.schema import Settings
from pipeline.inference.predictor import Predictor
from pipeline.registry.lineage import lineage
from pipeline.registry.register import Registered, register
from pipeline.runtime.errors import DataError, UsageError
from pipeline.runtime.files import file_digest
from pipeline.tracking.mlflow_tracker import open_run
from pipeline.tracking.tracker import tracking_uri
from tests.command import pipeline_here
from tests.pipeline.inference.checkpoints import checkpoint, label_space
from tests.pipeline.inference.conftest import photo
from tests.pipeline.tracking.stores import free_port


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Settings:
    """A project after training and evaluation of the variant exact."""
    project = tmp_path_factory.mktemp("project")
    shutil.copy(empty_store, project / "mlflow.db")
    tree = {"data": {"root": "data/tiny"}, "variants": {"exact": {}}}
    (project / "params.yaml").write_text(yaml.safe_dump(tree))
    settings = load_settings(project / "params.yaml", variant="exact")
    manifest = bootstrapped_folder(settings) / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    path = best_checkpoint_file(settings)
    with open_run(settings) as tracker:
        tracker.log_data(settings, "train", context="training")
        trained = dataclasses.replace(checkpoint(), progress={"finished": True, "run_id": tracker.run_id})
        trained.save(path)
    lock = {
        "stages": {"train@exact": {"outs": [{"path": "checkpoints/exact/best.safetensors", "md5": "abc"}]}}
    }
    (project / "dvc.lock").write_text(yaml.safe_dump(lock))
    return settings


@pytest.fixture(scope="module")
def client(settings: Settings) -> MlflowClient:
    return MlflowClient(tracking_uri(settings))


@pytest.fixture(scope="module")
def evaluated(settings: Settings, client: MlflowClient) -> str:
    """The id of the model that evaluation logged, twice."""
    path = best_checkpoint_file(settings)
    run_id = load_checkpoint(path, header_only=True).progress["run_id"]
    for miou in (0.25, 0.26):  # evaluated again with other settings: the same model, with its new metric
        with open_run(settings, run_id=run_id, results=True) as tracker:
            tracker.log_model(
                settings, path, {"val/miou": miou, "val/none": None}, step=7, params={"num_classes": 300}
            )
    experiment = client.get_experiment_by_name("kiloseg").experiment_id
    (model,) = client.search_logged_models([experiment])
    return str(model.model_id)


@pytest.mark.process
def test_evaluation_logs_one_model_that_points_to_the_file(
    settings: Settings, client: MlflowClient, evaluated: str
) -> None:
    path = best_checkpoint_file(settings)
    model = client.get_logged_model(evaluated)
    assert model.source_run_id == load_checkpoint(path, header_only=True).progress["run_id"]
    assert model.tags["sha256"] == file_digest(path)
    assert model.tags["path"] == "checkpoints/exact/best.safetensors"
    assert model.params["num_classes"] == "300"
    latest = max(model.metrics, key=lambda metric: metric.timestamp)
    assert (latest.key, latest.value, latest.step) == ("val/miou", 0.26, 7)
    run = client.get_run(model.source_run_id)
    assert [output.model_id for output in run.outputs.model_outputs] == [evaluated]
    artifacts = Path(model.artifact_location.removeprefix("file://"))
    assert [file.name for file in artifacts.rglob("*") if file.is_file()] == ["MLmodel"]  # no copy


@pytest.fixture(scope="module")
def registered(settings: Settings, evaluated: str) -> str:
    """The address of a version with an alias."""
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri(settings)
    try:
        return register(settings, best_checkpoint_file(settings), "photos", "champion").uri
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]


@pytest.mark.process
def test_registering_leaves_mlflows_choice_of_a_store_alone(
    registered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    assert mlflow.get_tracking_uri() == "sqlite:///elsewhere.db"


@pytest.fixture(scope="module")
def server(settings: Settings, registered: str) -> Iterator[str]:
    """`mlflow models serve`, as the documentation starts it."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "mlflow"), "models", "serve", "-m", registered]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # as activated
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri(settings), "PATH": path}
    log = settings.project / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo(60, 80)).save(buffer, format="PNG")
    return buffer.getvalue()


def ask(address: str, images: list[str], **params: object) -> list[dict[str, str]]:
    body = json.dumps(
        {"dataframe_split": {"columns": ["image"], "data": [[one] for one in images]}, "params": params}
    )
    request = urllib.request.Request(
        f"{address}/invocations", body.encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return list(json.load(answer)["predictions"])


@pytest.mark.process
@pytest.mark.slow
def test_a_request_is_answered_as_pipeline_predict_does(
    settings: Settings, server: str, registered: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = base64.b64encode(picture()).decode()
    (tmp_path / "one.png").write_bytes(picture())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(settings))
    name = label_space().names[270]
    for params, options in (
        ({}, {}),
        ({"classes": f"{name},12", "min_confidence": 0.5}, {"classes": [name, 12], "min_confidence": 0.5}),
    ):
        expected = Predictor.load(registered, **options)(tmp_path / "one.png")
        answers = ask(server, [text, text], **params)
        assert len(answers) == 2
        for answer in answers:
            with Image.open(io.BytesIO(base64.b64decode(answer["class_map"]))) as opened:
                np.testing.assert_array_equal(np.asarray(opened), expected.class_map)
            assert json.loads(answer["classes"])["classes"] == expected.to_dict()["classes"]
    for wrong in ("not base64!", base64.b64encode(b"no picture").decode()):
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(server, [wrong])
        assert 400 <= refused.value.code < 600
        assert "row 0 of the column image" in refused.value.read().decode()


@pytest.mark.process
@pytest.mark.slow
def test_the_chain_is_found_from_every_end(
    settings: Settings, client: MlflowClient, evaluated: str, registered: str
) -> None:
    path = best_checkpoint_file(settings)
    run_id = load_checkpoint(path, header_only=True).progress["run_id"]
    found = lineage(settings, str(path))
    assert found.run_id == run_id
    assert found.sha256 == file_digest(path)
    assert found.dvc_output == "md5 abc"
    assert found.experiment == "kiloseg"
    assert found.model_id == evaluated  # what evaluation logged is what was registered
    assert found.versions == ["models:/photos/1 @champion"]
    assert list(found.data) == ["tiny train"]
    for source in (
        str(path.parent),
        f"runs:/{run_id}",
        run_id,
        registered,
        "models:/photos/1",
        f"models:/{evaluated}",
    ):
        other = lineage(settings, source)
        assert dataclasses.replace(other, checkpoint="", dvc_output="") == dataclasses.replace(
            found, checkpoint="", dvc_output=""
        )
    model = client.get_logged_model(evaluated)
    files = {file.name for file in Path(model.artifact_location.removeprefix("file://")).rglob("*")}
    assert {"MLmodel", "served_model.py", "best.safetensors", "input_example.json"} <= files
    assert not [name for name in files if name.endswith(".pkl")]
    version = client.get_model_version_by_alias("photos", "champion")
    assert version.source == f"models:/{evaluated}"


@pytest.mark.process
def test_a_variant_a_file_and_a_runs_folder_name_the_same_checkpoint(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(settings.project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (settings.project / "exact").mkdir(exist_ok=True)  # a folder called as a variant means the variant
    given: list[tuple[str | None, Path]] = []

    def note(settings: Settings, path: Path, name: str, alias: str | None) -> Registered:
        given.append((settings.variant, path.resolve()))
        return Registered(name, 1, f"models:/{name}/1", None)

    monkeypatch.setattr("pipeline.registry.register.register", note)
    for source in ("exact", "checkpoints/exact/best.safetensors", "checkpoints/exact"):
        assert pipeline_here("register", source, "--name", "a") == 0
    best = best_checkpoint_file(settings).resolve()
    assert given == [("exact", best), (None, best), (None, best)]
    assert pipeline_here("register", "data", "--name", "a") == 3
    assert "no checkpoint" in capsys.readouterr().err


@pytest.mark.process
def test_mistakes_are_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = best_checkpoint_file(settings)
    for name, alias in (("a/b", None), ("a:b", None), (" ", None), ("a", "v1"), ("a", "latest"), ("a", "1x")):
        with pytest.raises(UsageError, match="MLflow takes no such"):
            register(settings, path, name, alias)
    with pytest.raises(DataError, match="no checkpoint"):
        register(settings, settings.project / "nothing.safetensors", "a")
    for source in ("models:/nobody@champion", f"runs:/{'0' * 32}", "models:/m-nothing"):
        with pytest.raises(DataError, match="not in the MLflow store"):
            lineage(settings, source)
    with pytest.raises(UsageError, match="neither a checkpoint nor a run nor a model"):
        lineage(settings, "nothing")
    monkeypatch.chdir(settings.project)
    assert pipeline_here("register", "nobody", "--name", "a") == 2
    assert "unknown variant 'nobody'" in capsys.readouterr().err
    assert pipeline_here("lineage", "checkpoints/exact") == 0
    assert "checkpoints/exact/best.safetensors" in capsys.readouterr().out
