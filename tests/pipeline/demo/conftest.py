"""A predictor of all 1,284 classes, for all tests of the page."""

from __future__ import annotations

import pytest

from pipeline.data.labels.merge import merge_categories
from pipeline.data.labels.official import official_categories
from pipeline.inference.predictor import Predictor
from tests.pipeline.inference.checkpoints import checkpoint


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    official = official_categories()
    space = merge_categories(official.lvis, official.stuff, official.merged_pairs)
    return Predictor.from_checkpoint(checkpoint(space=space), device="cpu")
