"""What a run shows of itself, and the short looks into one that goes wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.config.load import load_settings
from pipeline.tracking.tracker import NoTracker
from pipeline.training.debug import FEW_STEPS
from pipeline.training.outputs import write_training
from pipeline.training.trainer import train
from tests.pipeline.training.recording import Recorder


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


def test_few_batches_end_soon_with_all_that_a_run_leaves(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load_settings(variant="exact", overrides={"train.debug": "few_batches", "train.steps": 10_000})
    result = train(settings, NoTracker())
    assert result.steps == FEW_STEPS
    assert result.state.finished
    assert result.checkpoint.is_file()
    assert "no result" in capsys.readouterr().err


def test_a_profile_leaves_a_trace_that_chrome_reads(project: Path) -> None:
    settings = load_settings(variant="exact", overrides={"train.debug": "profile", "train.steps": 10_000})
    result = train(settings, NoTracker())
    trace = json.loads((result.checkpoint.parent / "trace.json").read_text())
    assert any("convolution" in str(event.get("name")) for event in trace["traceEvents"])


class Keeper(NoTracker):
    """Keeps all that training says."""

    def __init__(self) -> None:
        self.params: dict[str, object] = {}
        self.metrics: dict[str, float] = {}

    def log_params(self, params: Mapping[str, object]) -> None:
        self.params |= params

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics |= metrics


def test_environment_and_time_spent_waiting_for_data_are_recorded(project: Path) -> None:
    keeper, settings = Keeper(), load_settings(variant="exact")
    write_training(settings, train(settings, keeper))
    assert {"environment.torch", "environment.git_commit", "environment.device", "train.seed"} <= set(
        keeper.params
    )
    facts = json.loads((project / "results" / "exact" / "training.json").read_text())
    assert 0 < facts["data_wait_share"] < 1
    assert keeper.metrics["train/data_wait_share"] == pytest.approx(facts["data_wait_share"], abs=0.5)
    assert keeper.metrics["train/images_per_second"] > 0


def test_a_line_of_progress_says_how_it_goes(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.runtime.progress import Progress

    monkeypatch.setattr(Progress.__init__, "__kwdefaults__", {"start": 0, "seconds": 0.0})
    train(load_settings(variant="exact"), NoTracker())
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train exact: 5/8")]
    assert len(lines) == 1
    for part in ("loss ", "rate ", "images/s", "GiB", "waiting for data", " left)"):
        assert part in lines[0]
