"""The whole chain for real: `dvc repro` in a copy of the project with shrunken settings."""

from __future__ import annotations

import csv
import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from pipeline.report.plots_page import install
from tests.command import pipeline_here
from tests.stages.conftest import VARIANTS, dvc


@pytest.mark.process
def test_every_stage_leaves_what_it_promises(chain: Path) -> None:
    for variant in VARIANTS:
        metrics = json.loads((chain / "results" / variant / "metrics.json").read_text())
        assert {"miou", "boundary_iou", "pixel_accuracy", "train_seconds", "images_per_second"} <= set(
            metrics
        )
        assert len(metrics) <= 12
        assert all(isinstance(value, int | float) for value in metrics.values())
        with (chain / "results" / variant / "per_class.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 1284
        ious = [float(row["iou"]) for row in rows if row["iou"]]
        assert metrics["miou"] == pytest.approx(sum(ious) / len(ious))
        assert (chain / "checkpoints" / variant / "best.safetensors").is_file()
        record = json.loads((chain / "evaluations" / variant / "record.json").read_text())
        assert {"miou_federated", "miou_val2017", "labeled_share"} <= set(record["metrics"])
        assert record["metrics"]["miou_federated"] >= 0
        assert record["metrics"]["images_val2017"] == 2
        assert record["training"]["threads"] == record["environment"]["threads"] == 1
        assert record["training"]["processor"] == record["environment"]["processor"]
    page = (chain / "results" / "report.html").read_text()
    assert all(variant in page for variant in VARIANTS)


@pytest.mark.training
def test_each_variant_is_one_finished_run_with_metrics_table_and_report(chain: Path) -> None:
    client = MlflowClient(f"sqlite:///{chain / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("kiloseg")
    runs = {run.data.tags["variant"]: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == set(VARIANTS)
    for variant, run in runs.items():
        metrics = json.loads((chain / "results" / variant / "metrics.json").read_text())
        assert run.info.status == "FINISHED"
        assert run.data.metrics["val/miou"] == metrics["miou"]
        assert 10 <= len(run.data.metrics) <= 35
        files = {entry.path for entry in client.list_artifacts(run.info.run_id)}
        assert {"per_class.json", "report.html"} <= files
        assert len(run.inputs.dataset_inputs) == 2


@pytest.mark.process
def test_a_second_repro_runs_nothing(chain: Path) -> None:
    result = dvc(chain, "repro")
    assert "Running stage" not in result.stdout
    assert "up to date" in result.stdout


@pytest.mark.process
def test_metrics_plots_and_params_can_be_shown(chain: Path) -> None:
    shown = json.loads(dvc(chain, "metrics", "show", "--json").stdout)
    files = shown[""]["data"]
    assert {f"results/{variant}/metrics.json" for variant in VARIANTS} == set(files)
    install(chain)
    plots = dvc(chain, "plots", "show", "--out", "plots")
    assert plots.returncode == 0, plots.stderr
    page = (chain / "plots" / "index.html").read_text()
    assert all(f"{name}.csv" in page for name in ("loss", "holdout", "groups", "calibration"))
    assert '"variant": "softmax"' in page
    assert "cdn." not in page
    if shutil.which("chromium"):
        drawn, said = drawn_offline(chain / "plots" / "index.html")
        assert (drawn, said) == (4, [])


def drawn_offline(path: Path) -> tuple[int, list[str]]:
    """How many plots a browser without a network draws, and what it complains of."""
    from playwright.sync_api import sync_playwright

    said: list[str] = []
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_context(offline=True).new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        page.locator(".vega-embed svg.marks").nth(3).wait_for(timeout=30_000)
        drawn = page.locator(".vega-embed svg.marks").count()
        browser.close()
    return drawn, said


@pytest.mark.process
def test_changing_one_variant_reruns_that_variant_only(chain: Path) -> None:
    text = (chain / "params.yaml").read_text()
    try:
        params = yaml.safe_load(text)
        params["variants"]["exact"] = {"loss": {"temperature": 0.1}}
        (chain / "params.yaml").write_text(yaml.safe_dump(params))
        planned = dvc(chain, "repro", "--dry").stdout
    finally:
        (chain / "params.yaml").write_text(text)
    assert "Running stage 'train@exact'" in planned
    assert "Running stage 'train@softmax'" not in planned
    assert "Running stage 'bootstrap'" not in planned


@pytest.mark.process
def test_more_seeds_add_stages_and_train_no_variant_again(chain: Path) -> None:
    text = (chain / "params.yaml").read_text()
    try:
        params = yaml.safe_load(text)
        params["seeds"] = {"variants": ["softmax"], "values": [1, 2]}
        (chain / "params.yaml").write_text(yaml.safe_dump(params))
        planned = dvc(chain, "repro", "--dry", "average@softmax").stdout
    finally:
        (chain / "params.yaml").write_text(text)
    for seed in (1, 2):
        assert f"> python -m stages.train softmax-seed-{seed}\n" in planned
    assert "Running stage 'train@" not in planned


@pytest.mark.process
def test_a_stage_fails_with_the_code_and_message_of_the_mistake(
    chain: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(chain)
    for arguments, message in ((["nobody"], "unknown variant 'nobody'"), ([], "works on one variant")):
        monkeypatch.setattr(sys, "argv", ["stages/train.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("stages.train", run_name="__main__")
        assert ended.value.code == 2
        said = capfd.readouterr().err
        assert said.startswith("error: ")
        assert message in said
        assert "Traceback" not in said


@pytest.mark.process
def test_a_trained_variant_can_be_judged_on_any_split(
    chain: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(chain)
    assert pipeline_here("evaluate", "exact", "--split", "val") == 0
    written = json.loads((chain / "results" / "exact" / "metrics.json").read_text())
    assert json.loads(capfd.readouterr().out)["miou"] == written["miou"]
    assert pipeline_here("evaluate", "exact", "--split", "test") == 2
    assert "train, holdout, val" in capfd.readouterr().err


@pytest.mark.process
@pytest.mark.training
@pytest.mark.slow
def test_an_experiment_in_dvcs_temporary_copy_tracks_in_the_project(chain: Path) -> None:
    """With a relative data.root outside the project, which the copy of DVC does not have."""
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "add", "--all"], cwd=chain, check=True)
    subprocess.run(["git", *identity, "commit", "--quiet", "--message", "all"], cwd=chain, check=True)
    client = MlflowClient(f"sqlite:///{chain / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("kiloseg")
    before = {run.info.run_id for run in client.search_runs([experiment.experiment_id])}
    settings = ("-S", "train.steps=2", "-S", "train.validate_every=2")
    result = dvc(chain, "exp", "run", "--temp", "--name", "short", "train@exact", *settings)
    assert result.returncode == 0, result.stdout + result.stderr
    (new,) = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_id not in before]
    assert (new.info.status, new.data.params["train.steps"]) == ("FINISHED", "2")
    assert new.data.tags["dvc_experiment"] == "short"
    assert not (chain / "mlflow-unsent").exists()
