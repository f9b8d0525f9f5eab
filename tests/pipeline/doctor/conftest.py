"""What the doctor's tests share: a bare project."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.doctor.projects import write_params


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with settings and nothing else, on a machine with no programs on PATH."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "programs"))
    (tmp_path / "programs").mkdir()
    (tmp_path / "project").mkdir()
    write_params(tmp_path / "project")
    return tmp_path / "project"
