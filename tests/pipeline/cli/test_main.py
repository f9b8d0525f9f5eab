"""The command line as a user meets it: fast to answer, clear in refusing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import pipeline_here


def pipeline(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command in a process of its own."""
    command = [str(Path(sys.executable).parent / "pipeline"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.process
def test_version_and_help() -> None:
    assert pipeline("--version").stdout.startswith("kiloseg 0.")
    shown = pipeline("--help").stdout
    assert all(command in shown for command in ("doctor", "data", "ui", "memory"))


@pytest.mark.process
def test_wrong_usage_of_the_installed_command_is_exit_code_2_without_traceback() -> None:
    result = pipeline("nonsense")
    assert result.returncode == 2
    assert result.stderr.strip()
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [["--nonsense"], ["data", "bootstrap"], ["ui", "--port", "0"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert pipeline_here(*arguments) == 2
    said = capfd.readouterr().err
    assert said.strip()
    assert "Traceback" not in said


def test_a_mistake_in_the_settings_is_one_message_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "params.yaml").write_text("data: {root: x}\nlos: {}\n")
    monkeypatch.chdir(tmp_path)
    assert pipeline_here("ui") == 2
    said = capfd.readouterr().err
    assert "did you mean loss" in said
    assert "Traceback" not in said


def test_bad_data_is_exit_code_3_and_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert pipeline_here("data", "bootstrap", str(tmp_path / "none"), str(tmp_path / "out")) == 3
    said = capfd.readouterr().err
    assert "none" in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_ui_before_any_run_says_what_to_do(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert pipeline_here("ui") == 1
    assert "dvc repro" in capfd.readouterr().err


def test_bootstrapped_masks_can_be_exported(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    assert pipeline_here("data", "masks", "data/bootstrapped", "masks") == 0, capfd.readouterr().err
    masks = sorted((project / "masks").rglob("*.png"))
    assert masks
    for path in masks:
        assert len(path.stem) == 12
        with Image.open(path) as mask:
            assert mask.mode in ("I;16", "I;16L", "I")
