"""What tests of the stages share: a project in which the whole pipeline has run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.paths import ROOT

VARIANTS = ("exact", "softmax")


def dvc(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["PYTHONPATH"] = str(project)
    # the copy has the same sources: what was compiled from them here need not be compiled again
    environment.setdefault("NUMBA_CACHE_DIR", str(ROOT / "models" / "compiled" / "__pycache__"))
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory, bootstrapped_project: Path, empty_store: Path) -> Path:
    """A copy of the project after `dvc repro`, on a miniature of the embedded dataset given as a real one."""
    project = tmp_path_factory.mktemp("chain") / "project"
    project.mkdir()
    for name in ("models", "pipeline", "stages", "dvc.yaml", ".dvcignore", ".gitignore"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, project / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, project)
    shutil.copy(empty_store, project / "mlflow.db")
    params = yaml.safe_load((bootstrapped_project / "params.yaml").read_text())
    params["data"]["root"] = os.path.relpath(bootstrapped_project / "data" / "tiny", project)
    params["variants"] = {name: params["variants"][name] for name in VARIANTS}
    defaults = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in defaults.items():  # dvc wants every section that a stage declares
        params.setdefault(section, values)
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    assert dvc(project, "init", "--quiet").returncode == 0
    shutil.copy(ROOT / ".dvc" / "config", project / ".dvc" / "config")
    shutil.copytree(ROOT / ".dvc" / "plots", project / ".dvc" / "plots")
    result = dvc(project, "repro")
    assert result.returncode == 0, result.stdout + result.stderr
    return project
