"""`pipeline init`: the paper's settings for a dataset, checked, marked, and fitted to a budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.config.load import load_settings
from pipeline.config.recipes import RECIPES
from pipeline.data.labels.published import published_classes
from pipeline.memory.predict import predict_bytes
from pipeline.runtime.device import GIB
from pipeline.runtime.errors import UsageError
from tests.paths import ROOT
from tests.pipeline.data.layouts import miniature


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def init(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["init", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("dataset", RECIPES)
def test_a_recipe_is_valid_and_says_where_its_values_come_from(tmp_path: Path, dataset: str) -> None:
    output = init("--dataset", dataset)
    (variant,) = load_settings().variants
    settings = load_settings(variant=variant)
    known = {"cityscapes": (6, 12), "ade20k": (12, 10), "cocostuff10k": (12, 10)}
    found = (settings.model.embedding_dim, settings.train.batch_size)
    assert found == known.get(dataset, found)
    assert (settings.data.layout, settings.data.root) == (dataset, tmp_path / "data" / dataset)
    assert (settings.train.steps, settings.loss.num_negatives) == (200_000, 7)
    text = (tmp_path / "params.yaml").read_text()
    assert "# paper" in text
    assert "next: " in output
    of_project = yaml.safe_load((ROOT / "params.yaml").read_text())
    written = yaml.safe_load(text)
    for section in ("data", "model", "loss", "train", "evaluate"):
        assert written[section].keys() == of_project[section].keys(), section


@pytest.mark.parametrize("dataset", miniature.MAKERS)
def test_dvc_watches_the_folder_of_the_labels(tmp_path: Path, dataset: str) -> None:
    miniature.MAKERS[dataset](tmp_path / "data" / dataset)
    assert "dvc repro" in init("--dataset", dataset)
    data = load_settings().data
    assert any((data.root / data.annotations).rglob("*.*"))


def test_the_number_of_classes_is_that_of_the_layout() -> None:
    for dataset in miniature.MAKERS:
        classes = published_classes(dataset, populated_only=True).num_classes
        assert RECIPES[dataset][0] == classes


@pytest.mark.slow
def test_a_budget_divides_the_batch_by_prediction() -> None:
    arguments = ["--dataset", "cityscapes", "--backbone", "test_resnet", "--budget", "0.5GiB"]
    assert "accumulation_steps" in init(*arguments)
    settings = load_settings(variant="essnet")
    assert settings.model.backbone == "test_resnet"
    assert settings.train.batch_size == 12
    assert settings.train.accumulation_steps > 1
    assert predict_bytes(settings, 19) <= 0.5 * GIB


def test_a_file_that_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("mine: 1\n")
    refused = CliRunner().invoke(app, ["init", "--dataset", "voc"])
    assert isinstance(refused.exception, UsageError)
    assert (tmp_path / "params.yaml").read_text() == "mine: 1\n"
    init("--dataset", "voc", "--force")
    assert load_settings().data.voc.augmented
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_an_unknown_dataset_is_refused() -> None:
    refused = CliRunner().invoke(app, ["init", "--dataset", "imagenet"])
    assert isinstance(refused.exception, UsageError)
    assert "cityscapes" in str(refused.exception)
