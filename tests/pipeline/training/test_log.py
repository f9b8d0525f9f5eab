"""What a run shows of itself: parameters, speed, time spent waiting, progress."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.config.load import load_settings
from pipeline.tracking.tracker import NoTracker
from pipeline.training.outputs import write_training
from pipeline.training.trainer import train


class Keeper(NoTracker):
    """Keeps all that training says."""

    def __init__(self) -> None:
        self.params: dict[str, object] = {}
        self.metrics: dict[str, float] = {}

    def log_params(self, params: Mapping[str, object]) -> None:
        self.params |= params

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics |= metrics


@pytest.mark.training
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


@pytest.mark.training
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
