"""A step under autocast is predicted for every head and loss, and holds less than in float32."""

from __future__ import annotations

import pytest

from pipeline.config.load import load_settings
from pipeline.memory.predict import memory_rows
from tests.paths import ROOT

OVERRIDES = {"model.backbone": "test_resnet", "train.crop_size": 64, "train.batch_size": 2}


@pytest.mark.slow
def test_half_precision_is_predicted_for_every_column() -> None:
    rows = {}
    for name in ("fp32", "bf16"):
        settings = load_settings(ROOT / "params.yaml", overrides={**OVERRIDES, "train.precision": name})
        rows[name] = {row.head: row.predicted_gib for row in memory_rows(settings, [19])}
    assert len(rows["fp32"]) == 3
    assert all(0 < rows["bf16"][name] < rows["fp32"][name] for name in rows["fp32"])
