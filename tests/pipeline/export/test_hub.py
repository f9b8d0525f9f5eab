"""The folder for a model hub: complete, loadable, and never in place of other files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.export.hub import export_hub
from pipeline.inference.predictor import Predictor
from pipeline.runtime.errors import UsageError
from tests.command import pipeline_here
from tests.pipeline.inference.checkpoints import NUM_CLASSES, checkpoint, saved
from tests.pipeline.inference.conftest import photo


def test_the_folder_loads_as_the_checkpoint_and_describes_itself(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "exact").mkdir(parents=True)
    saved(tmp_path / "checkpoints" / "exact")
    (tmp_path / "results" / "exact").mkdir(parents=True)
    (tmp_path / "results" / "exact" / "metrics.json").write_text('{"miou": 0.25, "classes": {"a": 1}}')
    out = tmp_path / "hub"
    options = ("--format", "hub", "--license", "cc-by-4.0", "--params", str(tmp_path / "params.yaml"))
    for _ in range(2):  # the second replaces the first
        assert pipeline_here("export", "exact", "--out", str(out), *options) == 0

    picture = photo(40, 60)
    loaded, expected = (
        Predictor.load(out, device="cpu"),
        Predictor.from_checkpoint(checkpoint(), device="cpu"),
    )
    np.testing.assert_array_equal(loaded(picture).class_map, expected(picture).class_map)
    config = json.loads((out / "config.json").read_text())
    names = (out / "labels.txt").read_text().splitlines()
    assert len(names) == len(config["id2label"]) == NUM_CLASSES
    assert config["id2label"]["1"] == names[0]
    _, head, text = (out / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(head)
    assert (card["license"], card["library_name"]) == ("cc-by-4.0", "kiloseg")
    assert card["model-index"][0]["results"][0]["metrics"] == [{"type": "miou", "value": 0.25}]
    assert "Predictor.load" in text


def test_the_folders_of_the_training_machine_are_left_out(tmp_path: Path) -> None:
    trained = checkpoint()
    trained.settings["data.root"] = "/home/somebody/photos"
    export_hub(trained, tmp_path / "hub", name="exact")
    for file in (tmp_path / "hub").iterdir():
        assert b"somebody" not in file.read_bytes()
    assert "photos" in (tmp_path / "hub" / "README.md").read_text()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("of the project")
    with pytest.raises(UsageError, match="will not overwrite"):
        export_hub(checkpoint(), tmp_path, name="exact")
    assert (tmp_path / "README.md").read_text() == "of the project"
