"""A scheduler's signal in a step that takes minutes: the state before the step is saved at once."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from pipeline.checkpoint.format import Checkpoint, load_checkpoint
from pipeline.checkpoint.run_folder import RunFolder
from pipeline.config.load import load_settings
from pipeline.config.paths import checkpoint_folder
from pipeline.config.schema import Settings
from pipeline.runtime.signals import Interrupted
from pipeline.train_step import step as train_step
from pipeline.training import early_save
from pipeline.training.trainer import train
from tests.pipeline.training.recording import Recorder, UndisturbedRuns, assert_same_checkpoints

OVERRIDES = {"train.checkpoint_every": 100, "train.ema": 0.9}
SOON = 60.0
"""Seconds after which the test gives up."""


@pytest.fixture
def settings(project: Path) -> Settings:
    """Saves are few, so that what is saved at step 3 was saved for the signal."""
    return load_settings(variant="exact", overrides=OVERRIDES)


def stop_in_step(monkeypatch: pytest.MonkeyPatch, number: int, until) -> None:
    """SIGTERM after forward and backward of a step, which then ends only when `until` says so, or never."""
    real, calls = train_step.accumulate_gradients, []

    def endless(*arguments: object) -> object:
        found = real(*arguments)  # batch norm's statistics are no longer those before the step
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
            given_up = time.monotonic() + SOON
            while not until():
                assert time.monotonic() < given_up, "nothing was saved while the step went on"
                time.sleep(0.01)
        return found

    monkeypatch.setattr(train_step, "accumulate_gradients", endless)
    monkeypatch.setattr(early_save, "PATIENCE_SECONDS", 0.01)


@pytest.mark.training
def test_a_signal_in_a_long_step_saves_the_state_before_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, undisturbed: UndisturbedRuns
) -> None:
    whole = undisturbed("exact", OVERRIDES)
    first, second = Recorder(), Recorder()
    last = checkpoint_folder(settings) / "last.safetensors"
    both = last, last.with_name("previous.safetensors")  # the one before is that of the start
    stop_in_step(monkeypatch, 4, lambda: all(path.exists() for path in both))
    with pytest.raises(Interrupted) as caught:
        train(settings, first)
    assert caught.value.exit_code == 143
    assert load_checkpoint(last).step == 3
    monkeypatch.undo()
    monkeypatch.chdir(settings.project)
    train(settings, second)
    assert (sorted(first.losses), sorted(second.losses)) == ([1, 2, 3], [4, 5, 6, 7, 8])
    assert {**first.losses, **second.losses} == whole.losses
    assert_same_checkpoints(checkpoint_folder(settings), whole.folder)


@pytest.mark.training
def test_where_the_early_save_fails_the_step_is_ended_and_the_failure_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, save = [], RunFolder.save_last

    def full(self: RunFolder, checkpoint: Checkpoint) -> None:
        if checkpoint.step == 0:
            return save(self, checkpoint)
        tried.append(checkpoint.step)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RunFolder, "save_last", full)
    stop_in_step(monkeypatch, 2, lambda: tried)
    with pytest.raises(OSError, match="No space left"):
        train(settings, Recorder())
    assert tried == [1, 2]  # early, and again after the step
