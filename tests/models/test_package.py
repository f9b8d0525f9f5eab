"""`pip install ./models` installs the package kiloseg, which works beside another folder named models."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.models.step import STEP
from tests.paths import ROOT

FOLDER = ROOT / "models"
PROJECT = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))
pytestmark = pytest.mark.process
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
PROGRAM = (
    "import models, kiloseg\nassert models.MINE and 'site-packages' in kiloseg.__file__\n"
    + STEP.format(name="kiloseg")
)


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program away from the checkout and return what it printed."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "TRITON"))
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the folder, built by setuptools without a network."""
    folder = tmp_path_factory.mktemp("build")
    source = shutil.copytree(FOLDER, folder / "models", ignore=shutil.ignore_patterns("__pycache__", "build"))
    run(sys.executable, "-c", BUILD, folder, cwd=source)
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.process
def test_the_wheel_holds_every_module_under_one_name_and_asks_for_torch_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    modules = {f"kiloseg/{path.relative_to(FOLDER).as_posix()}" for path in FOLDER.rglob("*.py")}
    assert {name for name in names if ".dist-info/" not in name} == modules | {"kiloseg/py.typed"}
    required = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
    assert [line for line in required if "extra ==" not in line] == PROJECT["project"]["dependencies"]
    assert {line.partition(">=")[0] for line in PROJECT["project"]["dependencies"]} == {"torch"}


@pytest.mark.slow
def test_it_trains_in_a_project_that_has_a_folder_models_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """The environment is fresh but for torch, which is read from here instead of installed again."""
    project, environment = tmp_path / "project", tmp_path / "environment"
    (project / "models").mkdir(parents=True)
    (project / "models" / "__init__.py").write_text("MINE = True\n")
    (project / "train.py").write_text(PROGRAM)
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python),
        *("install", "--no-deps", "--no-index", wheel),
        cwd=tmp_path,
    )
    (site_packages,) = environment.rglob("site-packages")
    # a path in a .pth file adds torch, but no editable install that is beside it
    (site_packages / "torch_from_here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "train.py", cwd=project)


def test_both_projects_have_one_version_and_the_same_bounds() -> None:
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    alone = PROJECT["project"]
    assert alone["name"] == "kiloseg" != whole["name"]
    assert (alone["version"], alone["requires-python"]) == (whole["version"], whole["requires-python"])
    bounds = [
        *alone["dependencies"],
        *(one for extra in alone["optional-dependencies"].values() for one in extra),
    ]
    assert set(bounds) <= set(whole["dependencies"])
