"""What tests of prediction share: predictors and photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.inference.predictor import Predictor
from tests.pipeline.inference.checkpoints import checkpoint, saved


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: patches of color with some noise."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 9 + 1, width // 9 + 1, 3), dtype=np.uint8)
    fine = coarse.repeat(9, axis=0).repeat(9, axis=1)[:height, :width]
    noise = random.integers(-20, 21, fine.shape)
    return (fine.astype(int) + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session", params=["embedding", "softmax"])
def predictor(request: pytest.FixtureRequest) -> Predictor:
    """Of both heads: not to be changed."""
    return Predictor.from_checkpoint(checkpoint(request.param), device="cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with three photographs, one of them in a folder below."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(("a.jpg", "b.png", "more/c.webp")):
        Image.fromarray(photo(61 + number, 83, number)).save(folder / name)
    return folder
