"""What libraries read from the environment is set before they are loaded, wherever a process begins."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipeline.runtime.before_torch import WAITING, prepare_libraries
from tests.paths import ROOT

BEGINNINGS = [
    *(f"stages.{name}" for name in ("prepare", "bootstrap", "train", "evaluate", "measure_memory", "report")),
    "pipeline.cli.main",
    "pipeline.tuning.runner",  # what Ray's workers import first
    "pipeline.inference.cluster",
    "tests.conftest",
]
PROGRAM = """
import importlib, os, sys

class Loading:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "matplotlib"):
            raise ImportError(name)

sys.meta_path.insert(0, Loading())
for beginning in sys.argv[1:]:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("pipeline", "stages", "models")]:
        del sys.modules[name]
    os.environ.pop("OMP_WAIT_POLICY", None)
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    try:
        importlib.import_module(beginning)
    except ImportError as error:
        if str(error) not in ("torch", "matplotlib"):
            raise
    print(beginning, os.environ.get("OMP_WAIT_POLICY"), os.environ["MPLBACKEND"])
"""


@pytest.mark.process
def test_every_beginning_sets_the_environment_before_torch_and_matplotlib_are_loaded() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in WAITING}
    command = [sys.executable, "-c", PROGRAM, *BEGINNINGS]
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.splitlines() == [f"{beginning} passive agg" for beginning in BEGINNINGS]


@pytest.mark.parametrize("name", WAITING)
def test_a_users_own_choice_wins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for one in WAITING:
        monkeypatch.delenv(one, raising=False)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv(name, "7")
    prepare_libraries()
    assert {one: os.environ[one] for one in WAITING if one in os.environ} == {name: "7"}
