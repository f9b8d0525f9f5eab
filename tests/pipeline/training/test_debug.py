"""Short looks into a training that goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config.load import load_settings
from pipeline.tracking.tracker import NoTracker
from pipeline.training.debug import FEW_STEPS
from pipeline.training.trainer import train
from tests.pipeline.training.recording import Recorder


@pytest.mark.training
def test_one_batch_is_learned_by_heart(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.train_step.step import TrainStep

    seen = set()
    step = TrainStep.__call__
    monkeypatch.setattr(
        TrainStep, "__call__", lambda self, batch, at: (seen.add(batch.image_ids), step(self, batch, at))[1]
    )
    recorder = Recorder()
    overrides = {"train.debug": "one_batch", "train.steps": 40, "train.validate_every": 40}
    train(load_settings(variant="exact", overrides=overrides), recorder)
    losses = list(recorder.losses.values())
    assert len(seen) == 1
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.training
def test_few_batches_end_soon_with_all_that_a_run_leaves(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load_settings(variant="exact", overrides={"train.debug": "few_batches", "train.steps": 10_000})
    result = train(settings, NoTracker())
    assert result.steps == FEW_STEPS
    assert result.state.finished
    assert result.checkpoint.is_file()
    assert "no result" in capsys.readouterr().err


@pytest.mark.training
def test_a_profile_leaves_a_trace_that_chrome_reads(project: Path) -> None:
    settings = load_settings(variant="exact", overrides={"train.debug": "profile", "train.steps": 10_000})
    result = train(settings, NoTracker())
    trace = json.loads((result.checkpoint.parent / "trace.json").read_text())
    assert any("convolution" in str(event.get("name")) for event in trace["traceEvents"])
