"""`pipeline tune` for real: Ray, Optuna and MLflow, from the command to the values kept."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import ray
import yaml
from mlflow import MlflowClient

from pipeline.tuning.sweep import Sweep
from tests.pipeline.tuning.sweeping import BIN, environment, runs, steps_of, tune_here

"""Tests that look at the one sweep of the fixture run in one worker, so that it runs once."""


def store(project: Path) -> str:
    return f"sqlite:///{project / 'mlflow.db'}"


@pytest.mark.slow
def test_each_trial_is_another_point_of_the_grid_and_finished(swept: Path) -> None:
    records = Sweep(swept / "sweeps" / "grid").records()
    assert [record.outcome for record in records] == ["finished"] * 3
    assert Sweep(swept / "sweeps" / "grid").plan.threads == 1
    assert {tuple(record.values.values()) for record in records} == {(4, 1), (4, 3), (8, 1)}
    with (swept / "sweeps" / "grid" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["miou"]) for row in rows] == sorted((float(row["miou"]) for row in rows), reverse=True)


@pytest.mark.slow
def test_trials_write_nothing_into_the_workspace(swept: Path) -> None:
    made = {path.name for path in swept.iterdir()} - {"tune.log", "mlflow.db-shm", "mlflow.db-wal"}
    assert made == {"data", "mlflow.db", "mlartifacts", "params.yaml", "sweeps"}


@pytest.mark.slow
def test_mlflow_has_one_parent_and_a_child_a_trial(swept: Path) -> None:
    parents, children = runs(store(swept), "grid")
    assert [(run.info.status, run.info.run_name) for run in parents] == [("FINISHED", "grid")]
    artifacts = MlflowClient(store(swept)).list_artifacts(parents[0].info.run_id)
    pictures = {"heat_map.png", "parallel_coordinates.png", "pareto.png"}
    assert {file.path for file in artifacts} == {"results.csv"} | pictures
    assert sorted(run.data.tags["sweep_trial"] for run in children) == ["0", "1", "2"]
    for run in children:
        record = Sweep(swept / "sweeps" / "grid").record(int(run.data.tags["sweep_trial"]))
        assert run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert (run.info.status, run.data.tags["outcome"]) == ("FINISHED", "finished")
        assert run.data.metrics["best/miou"] == record.score
        assert run.data.metrics["peak_memory_gib"] == record.memory_gib
        assert run.data.params["environment.threads"] == "1"
        assert run.data.params["model.embedding_dim"] == str(record.values["model.embedding_dim"])
        assert steps_of(store(swept), run, "train/loss") == list(range(1, 9))
    best = max(run.data.metrics["best/miou"] for run in children)
    assert parents[0].data.metrics["best/miou"] == best


@pytest.mark.slow
def test_best_shows_the_table_and_the_front(
    swept: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(swept)
    assert tune_here("best") == 0
    said = capfd.readouterr().out
    assert said.count("finished") == 4  # the title and a line a trial
    assert "Pareto front" in said
    assert "pipeline tune apply --name grid" in said


@pytest.mark.slow
def test_apply_writes_the_best_trial_into_the_settings(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    params = tmp_path / "params.yaml"
    shutil.copy(swept / "params.yaml", params)
    shutil.copytree(swept / "sweeps", tmp_path / "sweeps")
    records = Sweep(tmp_path / "sweeps" / "grid").records()
    best = max(records, key=lambda record: (record.score or 0.0, -(record.memory_gib or 0.0)))
    monkeypatch.chdir(tmp_path)
    assert tune_here("apply") == 0
    written = yaml.safe_load(params.read_text())["variants"]["essnet"]
    assert written["model"]["embedding_dim"] == best.values["model.embedding_dim"]
    assert written["loss"]["num_negatives"] == best.values["loss.num_negatives"]
    assert tune_here("apply", "--trial", "9") == 2
    assert "not a finished trial" in capfd.readouterr().err


@pytest.mark.slow
def test_a_name_in_use_is_refused(
    swept: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = (swept / "sweeps" / "grid" / "sweep.json").read_bytes()
    monkeypatch.chdir(swept)
    assert tune_here("--name", "grid") == 2
    said = capfd.readouterr().err
    assert "a sweep of this name exists" in said
    assert "--resume --name grid" in said
    assert (swept / "sweeps" / "grid" / "sweep.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "arguments", "code", "told"),
    [
        ({"space": {"loss.num_negative": {"choice": [1]}}}, [], 2, "did you mean num_negatives"),
        ({"space": {}}, [], 2, "nothing to sweep"),
        ({"variant": "nobody"}, [], 2, "unknown variant"),
        ({"fixed": {"model.embedding_dim": 4}}, [], 2, "both fixed and swept"),
        ({"objectives": ["peak_memory_gib"]}, [], 2, "[val/miou], [holdout/miou], or one of them"),
        pytest.param(
            {"memory_budget_gib": 0.001}, [], 4, "no point of the space fits", marks=pytest.mark.slow
        ),
        ({}, ["--name", "a/b"], 2, "not a name"),
        ({}, ["--time-budget", "soon"], 2, "not a time"),
        ({}, ["--resume", "--trials", "3"], 2, "--extend"),
        ({}, ["--resume"], 3, "no sweep yet"),
        ({}, ["best", "--name", "nobody"], 3, "no such sweep"),
        ({}, ["--address", "127.0.0.1:1"], 1, "the Ray cluster does not answer"),
        ({}, ["--address", "ray://127.0.0.1:1"], 2, "not an address to join"),
    ],
)
def test_a_mistake_ends_before_anything_is_started(
    project: Path,
    empty_store: Path,
    capfd: pytest.CaptureFixture[str],
    changes: dict[str, object],
    arguments: list[str],
    code: int,
    told: str,
) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    space = {"model.embedding_dim": {"choice": [4, 8]}}
    params["tune"] = {"variant": "essnet", "space": space} | changes
    shutil.copy(empty_store, project / "mlflow.db")
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    assert tune_here(*arguments) == code
    said = capfd.readouterr().err
    assert told in said
    assert "Traceback" not in said
    assert not (project / "sweeps").exists()
    assert not ray.is_initialized()


@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "sqlite:////dev/null/mlflow.db", "htp://typo"])
def test_a_silent_tracking_server_ends_it_before_anything_is_started(
    project: Path, capfd: pytest.CaptureFixture[str], uri: str
) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["tune"] = {"variant": "essnet", "space": {"model.embedding_dim": {"choice": [4]}}}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    assert tune_here(MLFLOW_TRACKING_URI=uri, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0") == 1
    said = capfd.readouterr().err
    assert "the MLflow store does not answer" in said
    assert "Traceback" not in said
    assert not (project / "sweeps").exists()
    assert not ray.is_initialized()


@pytest.mark.process
def test_the_command_itself_ends_a_mistake_without_traceback_or_trace(
    project: Path, empty_store: Path
) -> None:
    """In a process of its own, whose libraries may write at its end: the mistake that is found last."""
    shutil.copy(empty_store, project / "mlflow.db")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["tune"] = {"variant": "essnet", "space": {"model.embedding_dim": {"choice": [4]}}}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    command = [str(BIN / "pipeline"), "tune", "--address", "127.0.0.1:1"]
    result = subprocess.run(
        command, cwd=project, env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: the Ray cluster does not answer")
    assert "Traceback" not in result.stderr
    assert not (project / "sweeps").exists()


def test_more_trials_than_points_are_the_points(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["tune"] = {"space": {"model.embedding_dim": {"choice": [4, 8, 16]}}, "trials": 9}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    assert tune_here("--dry-run") == 0
    assert "all 3 points of the space" in capfd.readouterr().out


def test_points_that_are_one_training_are_counted_once(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    space = {"loss.name": {"choice": ["exact", "knn"]}, "loss.num_negatives": {"choice": [1, 3, 7]}}
    params["tune"] = {"space": space, "trials": 9}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    assert tune_here("--dry-run") == 0
    said = capfd.readouterr().out
    assert "6 points, 4 trainings" in said
    assert "all 4 points of the space" in said


def test_a_dry_run_checks_and_tells_and_makes_nothing(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["tune"] = {"space": {"model.embedding_dim": {"grid": [4, 8, 16]}}, "trials": 2}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    assert tune_here("--dry-run") == 0
    said = capfd.readouterr().out
    assert "model.embedding_dim: grid 4, 8, 16" in said
    assert "only 2 of the grid's 3 points" in said
    assert not (project / "sweeps").exists()
    (project / "data").unlink()
    assert tune_here("--dry-run") == 3
    assert "no bootstrapped data" in capfd.readouterr().err


@pytest.mark.slow
def test_the_plan_keeps_the_settings_of_its_start(swept: Path) -> None:
    plan = json.loads((swept / "sweeps" / "grid" / "sweep.json").read_text())
    assert plan["settings"]["variant"] == "essnet"
    assert plan["settings"]["loss"]["name"] == "knn"
