"""The command line as a user meets it: fast to answer, clear in refusing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def pipeline(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "pipeline"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_version_and_help() -> None:
    assert pipeline("--version").stdout.startswith("kiloseg 0.")
    shown = pipeline("--help").stdout
    assert all(command in shown for command in ("doctor", "data", "ui", "memory"))


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["--nonsense"], ["data", "bootstrap"], ["ui", "--port", "0"]]
)
def test_wrong_usage_is_exit_code_2_without_traceback(arguments: list[str]) -> None:
    result = pipeline(*arguments)
    assert result.returncode == 2
    assert result.stderr.strip()
    assert "Traceback" not in result.stderr


def test_a_mistake_in_the_settings_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("data: {root: x}\nlos: {}\n")
    result = pipeline("ui", cwd=tmp_path)
    assert result.returncode == 2
    assert "did you mean loss" in result.stderr
    assert "Traceback" not in result.stderr


def test_bad_data_is_exit_code_3_and_leaves_nothing(tmp_path: Path) -> None:
    result = pipeline("data", "bootstrap", str(tmp_path / "none"), str(tmp_path / "out"))
    assert result.returncode == 3
    assert "none" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_ui_before_any_run_says_what_to_do(project: Path) -> None:
    result = pipeline("ui", cwd=project)
    assert result.returncode == 1
    assert "dvc repro" in result.stderr


def test_bootstrapped_masks_can_be_exported(project: Path) -> None:
    from PIL import Image

    result = pipeline("data", "masks", "data/bootstrapped", "masks", cwd=project)
    assert result.returncode == 0, result.stderr
    masks = sorted((project / "masks").rglob("*.png"))
    assert masks
    for path in masks:
        assert len(path.stem) == 12
        with Image.open(path) as mask:
            assert mask.mode in ("I;16", "I;16L", "I")
