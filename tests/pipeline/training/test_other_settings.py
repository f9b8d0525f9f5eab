"""A training of days is never lost to a change of settings: it waits, and goes on as it would have."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.checkpoint.format import load_checkpoint
from pipeline.config.load import load_settings
from pipeline.config.paths import checkpoint_folder, results_folder
from pipeline.config.schema import Settings
from pipeline.runtime.signals import Interrupted
from pipeline.tracking.tracker import NoTracker
from pipeline.training.outputs import write_training
from pipeline.training.trainer import resumable_state, train
from tests.pipeline.training.recording import Recorder, UndisturbedRuns, assert_same_checkpoints, crash

pytestmark = pytest.mark.training


@pytest.fixture
def settings(project: Path) -> Settings:
    return load_settings(variant="exact")


class Named(Recorder):
    """In a run of its own."""

    def __init__(self, run_id: str, at: int | None = None, do=None) -> None:
        super().__init__(at, do)
        self.run_id = run_id


def stopped_at(step: int, settings: Settings, recorder: Recorder | None = None) -> Recorder:
    recorder = recorder or Recorder()
    recorder.at, recorder.do = step, lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Interrupted):
        train(settings, recorder)
    return recorder


def with_changes(overrides: Mapping[str, object]) -> Settings:
    return load_settings(variant="exact", overrides=overrides)


def test_a_training_goes_on_after_another_was_begun(
    settings: Settings, undisturbed: UndisturbedRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best so far, of step 4, comes back too, though the other training and DVC have removed it."""
    first = stopped_at(6, settings, Named("one"))
    other = with_changes({"train.learning_rate": 0.03})
    assert resumable_state(other) is None
    begun = stopped_at(5, other, Named("two"))
    assert min(begun.losses) == 1
    assert "at step 6 had other settings" in capsys.readouterr().err
    state = resumable_state(settings)
    assert state is not None
    assert (state.run_id, state.threads) == ("one", 1)
    (checkpoint_folder(settings) / "best.safetensors").unlink()
    second = Named("one")
    train(settings, second)
    assert "train exact: going on from step 6 of 8" in capsys.readouterr().err
    assert {**first.losses, **second.losses} == undisturbed("exact").losses
    assert_same_checkpoints(checkpoint_folder(settings), undisturbed("exact").folder)
    waiting = resumable_state(other)
    assert waiting is not None
    assert waiting.run_id == "two"


@pytest.mark.parametrize(
    "overrides",
    [
        {"evaluate.examples": 1, "evaluate.max_images": 3},
        {"train.checkpoint_every": 5, "loss.work_memory_mib": 16},
        {"tracking.experiment": "other", "runtime.num_workers": 1},
    ],
)
def test_what_does_not_change_the_result_changes_nothing(
    settings: Settings, undisturbed: UndisturbedRuns, overrides: dict[str, object]
) -> None:
    first, second = stopped_at(5, settings), Recorder()
    train(with_changes(overrides), second)
    assert min(second.losses) == 6
    assert {**first.losses, **second.losses} == undisturbed("exact").losses


def test_a_moved_project_goes_on(
    project: Path, settings: Settings, tmp_path_factory: pytest.TempPathFactory, undisturbed: UndisturbedRuns
) -> None:
    first, second = stopped_at(3, settings), Recorder()
    moved = tmp_path_factory.mktemp("elsewhere") / "a b"
    shutil.copytree(project / "data", moved / "data")
    shutil.copy(project / "params.yaml", moved)
    shutil.move(project / "checkpoints", moved)
    train(load_settings(moved / "params.yaml", variant="exact"), second)
    assert {**first.losses, **second.losses} == undisturbed("exact").losses
    assert not (project / "checkpoints").exists()


def test_a_debug_run_leaves_the_training_alone(
    settings: Settings, undisturbed: UndisturbedRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = stopped_at(5, settings), Recorder()
    folder = checkpoint_folder(settings)
    before = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    monkeypatch.delenv("DVC_STAGE", raising=False)
    for _ in range(2):
        debug = with_changes({"train.debug": "few_batches"})
        write_training(debug, train(debug, NoTracker()))
    assert {path.name: path.read_bytes() for path in folder.glob("*.safetensors")} == before
    assert not results_folder(settings).exists()
    assert json.loads((folder / "debug" / "training.json").read_text())["steps"] == 8
    monkeypatch.setenv("DVC_STAGE", "train@exact")  # which needs the stage's outputs at their place
    write_training(debug, train(debug, NoTracker()))
    assert load_checkpoint(folder / "best.safetensors").settings["train.debug"] == "few_batches"
    assert (results_folder(settings) / "training.json").is_file()
    train(settings, second)
    assert {**first.losses, **second.losses} == undisturbed("exact").losses
    assert_same_checkpoints(folder, undisturbed("exact").folder)


def test_a_finished_training_stays_until_the_next_is_validated(settings: Settings) -> None:
    train(settings, NoTracker())
    folder = checkpoint_folder(settings)
    before = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    (folder / "best.safetensors").unlink()  # as DVC does before it runs the stage
    other = with_changes({"train.seed": 1, "train.checkpoint_every": 1})
    first = Recorder(at=4, do=crash)  # logged before the validation of step 4
    with pytest.raises(MemoryError):
        train(other, first)
    assert {path.name: path.read_bytes() for path in folder.glob("*.safetensors")} == before
    second = Recorder(at=5, do=crash)
    with pytest.raises(MemoryError):
        train(other, second)
    assert sorted(second.losses) == [4, 5]
    state = resumable_state(other)
    assert state is not None
    assert [point[0] for point in state.validation_curve] == [4]
    best = load_checkpoint(folder / "best.safetensors")
    assert (best.step, best.settings["train.seed"]) == (4, 1)
    assert [path.name for path in folder.iterdir() if path.is_dir()] == []
    train(other, NoTracker())
    assert load_checkpoint(folder / "last.safetensors").progress["finished"]


def test_a_best_checkpoint_that_is_gone_for_good_is_told(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped_at(5, settings)
    for name in ("best", "chosen"):
        (checkpoint_folder(settings) / f"{name}.safetensors").unlink()
    result = train(settings, NoTracker())
    assert "the best checkpoint, of step 4, is gone" in capsys.readouterr().err
    assert load_checkpoint(result.checkpoint).step == result.state.best_step == 8


def test_another_number_of_threads_is_told_and_recorded(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    stopped_at(5, settings)
    try:
        two = with_changes({"runtime.threads": 2})
        write_training(two, train(two, NoTracker()))
    finally:
        torch.set_num_threads(1)
    assert "on 2 threads, 1 before" in capsys.readouterr().err
    assert json.loads((results_folder(settings) / "training.json").read_text())["threads"] == 2
