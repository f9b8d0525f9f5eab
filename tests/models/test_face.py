"""The public face: what `models` exports, that it needs torch alone, and that it works under another name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import models
from tests.models.step import STEP
from tests.paths import ROOT

NAMES = [
    "EmbeddingCrossEntropy",
    "EmbeddingHead",
    "Segmenter",
    "SegmenterConfig",
    "SoftmaxHead",
    "build_segmenter",
    "exact_cross_entropy",
    "features_before",
    "knn_cross_entropy",
    "nearest_classes",
    "predict_classes",
    "sampled_cross_entropy",
    "separation_loss",
]

# A program that copied the folder as `segloss`: nothing else of ours can be imported, nor what
# networks and compiled losses need.
PROGRAM = (
    """
import sys

class Refuse:
    def find_spec(self, name, *_):
        refused = {"models", "pipeline", "stages", "timm", "torchvision", "safetensors", "numba"}
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"{name} is refused here", name=name)

sys.meta_path.insert(0, Refuse())

def packages():
    return {name.partition(".")[0] for name in sys.modules}

import torch
import segloss
import segloss.segmenter, segloss.fused.search, segloss.losses.exact, segloss.tiled.cross_entropy_of_maps

assert "triton" not in sys.modules
import torch._dynamo  # what the first call of a loss, and of an optimizer, imports

before = packages()
"""
    + STEP.format(name="segloss")
    + """
assert packages() - before <= sys.stdlib_module_names, packages() - before
try:
    segloss.build_segmenter(segloss.SegmenterConfig(num_classes=3))
except ModuleNotFoundError as error:
    assert "timm" in str(error) and "fix: pip install" in str(error), error
else:
    raise AssertionError("a backbone was built without timm")
"""
)


def test_every_public_name_is_there_and_no_other() -> None:
    assert sorted(models.__all__) == NAMES
    assert all(callable(getattr(models, name)) for name in NAMES)


@pytest.mark.process
def test_a_copy_under_another_name_trains_and_needs_torch_alone(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models", tmp_path / "segloss", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["py.typed", "pyproject.toml"])
def test_the_folder_carries_what_makes_it_a_typed_package_of_its_own(name: str) -> None:
    assert (ROOT / "models" / name).is_file()
