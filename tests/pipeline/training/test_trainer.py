"""Training on the embedded dataset: it learns, repeats itself, resumes exactly and fails clearly."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint.format import load_checkpoint
from pipeline.checkpoint.run_folder import RunFolder
from pipeline.config.load import load_settings
from pipeline.config.paths import checkpoint_folder
from pipeline.config.schema import Settings
from pipeline.runtime.errors import DataError, KilosegError
from pipeline.runtime.signals import Interrupted
from pipeline.tracking.tracker import NoTracker
from pipeline.training.trainer import resumable_state, train
from tests.pipeline.training.recording import (
    Recorder,
    UndisturbedRuns,
    assert_same_checkpoints,
    crash,
    same_weights,
)


@pytest.fixture
def settings(project: Path) -> Settings:
    return load_settings(variant="exact")


@pytest.mark.training
def test_the_loss_falls_when_a_few_images_are_seen_again_and_again(project: Path) -> None:
    overrides = {
        "train.steps": 40,
        "train.scale_min": 1.0,
        "train.scale_max": 1.0,
        "train.validate_every": 40,
    }
    recorder = Recorder()
    train(load_settings(variant="exact", overrides=overrides), recorder)
    losses = list(recorder.losses.values())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.training
@pytest.mark.parametrize("variant", ["exact", "essnet", "sampled", "softmax"])
def test_the_same_seed_gives_the_same_run_and_another_seed_another(project: Path, variant: str) -> None:
    recorders = [Recorder(), Recorder(), Recorder()]
    for recorder, seed, name in zip(recorders, (0, 0, 1), "abc", strict=True):
        overrides = {"train.seed": seed, "train.steps": 3}
        train(load_settings(variant=variant, overrides=overrides), recorder, folder=project / name)
    assert recorders[0].losses == recorders[1].losses != recorders[2].losses
    assert same_weights(project / "a" / "last.safetensors", project / "b" / "last.safetensors")


@pytest.mark.training
@pytest.mark.parametrize("variant", ["exact", "sampled"])
def test_a_crashed_run_resumes_to_exactly_the_undisturbed_one(
    project: Path, variant: str, undisturbed: UndisturbedRuns
) -> None:
    settings, whole = load_settings(variant=variant), undisturbed(variant)
    first = Recorder(at=5, do=crash)  # the last checkpoint is that of step 4
    with pytest.raises(MemoryError):
        train(settings, first)
    state = resumable_state(settings)
    assert state is not None
    assert not state.finished
    second = Recorder()
    result = train(settings, second)
    assert min(second.losses) == 5
    assert {**first.losses, **second.losses} == whole.losses
    assert result.state.loss_curve == whole.result.state.loss_curve
    assert result.state.validation_curve == whole.result.state.validation_curve
    assert_same_checkpoints(checkpoint_folder(settings), whole.folder)
    assert resumable_state(settings) is None  # finished: the next run starts anew


@pytest.mark.training
def test_a_polite_stop_loses_no_step(settings: Settings, undisturbed: UndisturbedRuns) -> None:
    first = Recorder(at=3, do=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        train(settings, first)
    second = Recorder()
    train(settings, second)
    assert sorted(first.losses) == [1, 2, 3]
    assert sorted(second.losses) == [4, 5, 6, 7, 8]
    assert {**first.losses, **second.losses} == undisturbed("exact").losses


@pytest.mark.training
def test_a_run_killed_before_its_first_step_ended_goes_on_in_the_same_tracked_run(settings: Settings) -> None:
    class Named(Recorder):
        @property
        def run_id(self) -> str:
            return "the run"

    with pytest.raises(MemoryError):
        train(settings, Named(at=1, do=crash))
    state = resumable_state(settings)
    assert state is not None
    assert state.run_id == "the run"


@pytest.mark.training
def test_two_processes_do_not_train_into_one_folder(settings: Settings) -> None:
    folder = RunFolder(checkpoint_folder(settings))
    held, tell = os.pipe()
    wait, alive = os.pipe()
    other = os.fork()
    if not other:  # a process that holds the folder until it is killed, or we are; it computes nothing
        os.close(alive)
        with contextlib.suppress(BaseException), folder.locked():
            os.write(tell, b"held")
            os.read(wait, 1)
        os._exit(0)
    try:
        assert os.read(held, 4) == b"held"
        with pytest.raises(KilosegError, match=rf"another process(.|\n)*process {other}"):
            train(settings, NoTracker())
    finally:
        os.kill(other, signal.SIGKILL)  # which frees the folder
        os.waitpid(other, 0)
    assert train(settings, NoTracker()).steps == 8


@pytest.mark.training
@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(
    settings: Settings, damage: str, capsys: pytest.CaptureFixture[str], undisturbed: UndisturbedRuns
) -> None:
    whole = undisturbed("exact")
    assert not (whole.folder / "previous.safetensors").exists()
    first = Recorder(at=7, do=crash)  # checkpoints of steps 4 and 6 are there
    with pytest.raises(MemoryError):
        train(settings, first)
    last = checkpoint_folder(settings) / "last.safetensors"
    content = bytearray(last.read_bytes())
    content[-1000] ^= 1
    if damage == "gone":  # as if killed between moving the old one aside and writing the new
        last.unlink()
    else:
        last.write_bytes(content if damage == "bit" else content[:-1000])
    second = Recorder()
    train(settings, second)
    assert min(second.losses) == 5
    assert {**first.losses, **second.losses} == whole.losses
    assert ("checkpoint: " in capsys.readouterr().err) == (damage != "gone")


@pytest.mark.training
def test_other_settings_start_anew(settings: Settings, project: Path) -> None:
    first = Recorder(at=5, do=lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        train(settings, first)
    other = load_settings(variant="exact", overrides={"train.learning_rate": 0.03})
    assert resumable_state(other) is None
    second = Recorder()
    train(other, second)
    assert sorted(second.losses) == list(range(1, 9))


@pytest.mark.training
def test_the_best_checkpoint_is_chosen_on_the_held_out_part_and_describes_itself(
    settings: Settings, undisturbed: UndisturbedRuns
) -> None:
    result = undisturbed("exact").result
    checkpoint = load_checkpoint(result.checkpoint)
    best = max(miou for _, miou, _ in result.state.validation_curve)
    assert result.state.best_miou == best == checkpoint.progress["best_miou"]
    assert checkpoint.step == result.state.best_step
    assert checkpoint.label_space.num_classes == 1284
    elsewhere = {
        "data.root": checkpoint.settings["data.root"]
    }  # of the project that was trained once for all
    assert checkpoint.settings == settings.flat() | elsewhere
    images = torch.rand(1, 3, 40, 56)
    assert checkpoint.segmenter().predict(images, size=(40, 56)).shape == (1, 40, 56)


def test_training_without_bootstrapped_data_says_what_to_run(tmp_path: Path, project: Path) -> None:
    (tmp_path / "data").unlink()
    with pytest.raises(DataError, match=r"dvc repro|pipeline data bootstrap"):
        train(load_settings(variant="exact"), NoTracker())


@pytest.mark.training
def test_a_stop_during_a_validation_is_answered_at_once_and_the_validation_done_again(
    project: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: UndisturbedRuns
) -> None:
    settings = load_settings(variant="exact", overrides={"train.validate_every": 8})
    expected = undisturbed("exact", {"train.validate_every": 8}).result
    judged = []

    def stop_first(self: object, *prediction: object) -> None:
        judged.append(1)
        self.stop.signal_number = 15  # type: ignore[attr-defined]
        leave(self, *prediction)

    from pipeline.training.trainer import Trainer

    leave = Trainer._leave_if_stopped
    monkeypatch.setattr(Trainer, "_leave_if_stopped", stop_first)
    with pytest.raises(Interrupted):
        train(settings, NoTracker())
    assert len(judged) == 1
    monkeypatch.setattr(Trainer, "_leave_if_stopped", leave)
    recorder = Recorder()
    result = train(settings, recorder)
    assert recorder.losses == {}
    assert result.state.validation_curve == expected.state.validation_curve
    assert same_weights(result.checkpoint, expected.checkpoint)
