"""`pipeline compare` over variants, folders, git revisions, runs and trials."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from pipeline.comparison.compare import compare
from pipeline.comparison.output import as_text
from pipeline.comparison.sources import read_result
from pipeline.config.load import load_settings
from pipeline.config.schema import Settings
from pipeline.evaluation.image_counts import ImageCounts
from pipeline.runtime.errors import DataError, KilosegError, UsageError
from tests.command import pipeline_here
from tests.paths import ROOT
from tests.pipeline.report.test_build import Page, Place, make_record


def settings_of(project: Path) -> Settings:
    return load_settings(project / "params.yaml")


def counts(right: list[int], ids: list[int]) -> ImageCounts:
    """Images of 100 pixels of class 0, of which some are right and the others called 1."""
    rows = [
        (i, c, h, p, a) for i, n in enumerate(right) for c, h, p, a in ((0, n, n, 100), (1, 0, 100 - n, 0))
    ]
    return ImageCounts(np.array(ids), *np.array(rows).T)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two variants with the same images: softmax is worse in one class and in one image."""
    place = Place(tmp_path)
    for name, miou in (("exact", 0.43), ("softmax", 0.31)):
        place.write(make_record(name, miou=miou))
    table = tmp_path / "evaluations" / "softmax" / "per_class.csv"
    table.write_text(table.read_text().replace("300,300,0.5", "300,300,0.125"))
    ids = [600001, 600002, 600003, 600004]
    counts([90, 80, 70, 60], ids).save(tmp_path / "evaluations" / "exact" / "per_image.npz")
    counts([90, 80, 10, 60], ids).save(tmp_path / "evaluations" / "softmax" / "per_image.npz")
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_moved_is_named_with_both_values(project: Path) -> None:
    first, second = (read_result(name, settings_of(project)) for name in ("exact", "softmax"))
    found = compare(first, second)
    assert [(one.name, one.before, one.after, one.note) for one in found.classes] == [
        ("cat & dog", 0.5, 0.125, "c, 300 pixels")
    ]
    assert [(one.name, one.before, one.after) for one in found.images] == [("600003", 0.7, 0.1)]
    assert found.settings == [("loss.name", "exact", "softmax")]
    gains = {one.name: one.gain for one in found.metrics}
    assert gains["miou"] == pytest.approx(-0.12)
    assert gains["train_seconds"] == 0
    assert found.interval is not None
    assert found.interval[0] < found.interval[1] <= 0
    assert found.verdict.startswith("mIoU 43.00 % -> 31.00 % (-12.00); -")
    assert "not settled" in compare(first, first).verdict
    other = ImageCounts.load(project / "evaluations" / "exact" / "per_image.npz")
    other.image_ids[0] = 1
    other.save(project / "evaluations" / "softmax" / "per_image.npz")
    unpaired = compare(first, read_result("softmax", settings_of(project)))
    assert unpaired.interval is None
    assert unpaired.images == []


def test_the_command_prints_columns_and_writes_a_page(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipeline_here("compare", "exact", "evaluations/softmax", "--html", "out/page.html") == 0
    said = capsys.readouterr().out
    lines = {line.split("  ")[0]: line.split() for line in said.splitlines()}
    assert lines["miou"] == ["miou", "43.00", "%", "31.00", "%", "-12.00"]
    assert lines["train_seconds"][:3] == ["train_seconds", "61.5", "61.5"]
    assert lines["cat & dog"][3:] == ["50.00", "%", "12.50", "%", "-37.50", "c,", "300", "pixels"]
    page = Page(Path("out/page.html").read_text())
    assert "cat & dog" in page.text
    assert "://" not in page.source


@pytest.mark.process
def test_a_revision_is_read_from_dvc(project: Path) -> None:
    def run(*command: str) -> None:
        subprocess.run(command, cwd=project, check=True, capture_output=True)

    dvc = str(Path(sys.executable).parent / "dvc")
    run("git", "init", "--quiet")
    run(dvc, "init", "--quiet")
    run(dvc, "add", "--quiet", "evaluations")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    run("git", "add", "-A")
    run("git", *identity, "commit", "--quiet", "-m", "first")
    record = project / "evaluations" / "exact" / "record.json"
    record.write_text(record.read_text().replace("0.43", "0.5"))
    before, after = (read_result(name, settings_of(project)) for name in ("HEAD:exact", "exact"))
    assert (before.metrics["miou"], after.metrics["miou"]) == (0.43, 0.5)
    assert before.images is not None
    assert before.classes == after.classes
    with pytest.raises(DataError, match="no such evaluation in this revision"):
        read_result("HEAD:nobody", settings_of(project))
    with pytest.raises(DataError, match="no such evaluation in this revision"):
        read_result("v9:exact", settings_of(project))


def test_a_run_has_its_metrics_and_classes(project: Path) -> None:
    uri = f"sqlite:///{project / 'mlflow.db'}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("e", artifact_location=(project / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    client.log_metric(run_id, "val/miou", 0.25)
    client.log_metric(run_id, "train/loss", 3)
    columns = ["name", "frequency", "true_pixels", "predicted_pixels", "iou"]
    table = {"columns": columns, "data": [["cat & dog", "c", 300, 9, 0.25], ["sky", "stuff", 0, 0, None]]}
    client.log_text(run_id, json.dumps(table), "per_class.json")
    result = read_result(f"runs:/{run_id}", settings_of(project))
    assert result.metrics == {"miou": 0.25}
    found = compare(read_result("exact", settings_of(project)), result)
    assert [one.name for one in found.classes] == ["cat & dog"]
    assert "not known" in found.verdict
    with pytest.raises(KilosegError, match="no such run"):
        read_result("runs:/nothing", settings_of(project))


def test_a_trial_has_its_metrics(project: Path) -> None:
    folder = project / "sweeps" / "grid" / "trials" / "003"
    folder.mkdir(parents=True)
    (project / "sweeps" / "grid" / "sweep.json").write_text("{}")
    record = {
        "number": 3,
        "values": {"model.embedding_dim": 8},
        "outcome": "finished",
        "score": 0.2,
        "step": 9,
    }
    record |= {"metrics": {"val/miou": 0.2, "peak_memory_gib": 1.5}, "score": 0.2, "error": None}
    for name in ("trial.json", "result.json"):
        (folder / name).write_text(json.dumps(record))
    found = read_result("grid/3", settings_of(project))
    assert found.metrics == {"miou": 0.2, "peak_memory_gib": 1.5}
    assert "model.embedding_dim" in as_text(compare(read_result("exact", settings_of(project)), found))
    with pytest.raises(DataError, match="no result of this trial"):
        read_result("grid/4", settings_of(project))


def test_what_is_not_there_is_named_with_what_is(project: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)no such result.*evaluated variants: exact, softmax"):
        read_result("nobody", settings_of(project))
    (project / "evaluations" / "exact" / "record.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        read_result("exact", settings_of(project))
