"""From an official folder to the report: bootstrap, 12 steps of training, evaluation, report."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

from stages import bootstrap, evaluate, report, train
from tests.conftest import PARAMS
from tests.paths import SHARED
from tests.pipeline.data.layouts import miniature

SAMPLES = SHARED / "data" / "paper_datasets"
FOLDERS = {  # the key in expected.json, and the images of val
    "cityscapes": ("cityscapes", ["frankfurt_000000_000294"]),
    "voc": ("voc2012", ["2007_004189"]),
    "ade20k": ("ade20k", ["ADE_val_00000001", "ADE_val_00000002"]),
    "cocostuff10k": ("cocostuff10k_171", ["COCO_train2014_000000000139", "COCO_train2014_000000001503"]),
}
STEPS = 12


def run_chain(project: Path, layout: str, root: Path, store: Path) -> dict[str, int]:
    """Run the stages in this process; return the true pixels of each class that evaluating counted on val."""
    settings = {
        **PARAMS,
        "data": {"root": str(root), "layout": layout, "holdout_fraction": 0.3},
        "train": {**PARAMS["train"], "steps": STEPS, "validate_every": STEPS, "checkpoint_every": STEPS},
        "evaluate": {"examples": 2, "warp": 48 if layout == "cocostuff10k" else None},
        "variants": {"essnet": {"loss": {"name": "knn", "num_negatives": 3}}},
    }
    (project / "params.yaml").write_text(yaml.safe_dump(settings))
    shutil.copy(store, project / "mlflow.db")
    bootstrap.main()
    train.main("essnet")
    evaluate.main("essnet")
    report.main()
    results = project / "results"
    assert "essnet" in (results / "report.html").read_text()
    assert json.loads((results / "essnet" / "training.json").read_text())["steps"] == STEPS
    metrics = json.loads((results / "essnet" / "metrics.json").read_text())
    special = {"ade20k": {"ade20k_score"}, "cocostuff10k": {"warped_miou", "warped_pixel_accuracy"}}
    named = {key for key in metrics if key.startswith(("ade20k", "warped"))}
    assert named == special.get(layout, set())
    with (results / "essnet" / "per_class.csv").open(newline="") as file:
        counts = {str(int(row["class_id"]) - 1): int(row["true_pixels"]) for row in csv.DictReader(file)}
    return {train_id: pixels for train_id, pixels in counts.items() if pixels}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("layout", miniature.MAKERS)
def test_generated_sets_of_the_official_form_go_the_whole_way(
    project: Path, empty_store: Path, layout: str
) -> None:
    truth = miniature.MAKERS[layout](project / "set")
    counted = run_chain(project, layout, project / "set", empty_store)
    of_val = np.concatenate([truth[file].ravel() for file in list(truth)[-2:]])
    ids, pixels = np.unique(of_val[of_val >= 0], return_counts=True)
    assert counted == dict(zip(map(str, ids.tolist()), pixels.tolist(), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(not SAMPLES.is_dir(), reason="no ../shared/data/paper_datasets")
@pytest.mark.parametrize("layout", FOLDERS)
def test_the_real_samples_go_the_whole_way(project: Path, empty_store: Path, layout: str) -> None:
    key, val = FOLDERS[layout]
    root = SAMPLES / layout.replace("voc", "voc2012")
    if layout == "ade20k":  # one training image: train a second time on the same, as one is held out
        root = Path(shutil.copytree(root, project / "set"))
        for path in root.rglob("ADE_train_00000001.*"):
            shutil.copy(path, path.with_stem("ADE_train_00000002"))
    counted = run_chain(project, layout, root, empty_store)
    expected = json.loads((SAMPLES / "expected.json").read_text())[key]
    total = Counter[str]()
    for name in val:
        total.update(expected[name])
    del total["255"]
    assert counted == total
