"""A step is divided into as few micro-batches as fit, and batch_size: auto does so by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config.load import load_settings
from pipeline.config.schema import Settings
from pipeline.memory.batch_size import budget_bytes, min_accumulation
from pipeline.memory.predict import predict_bytes, with_changes
from pipeline.runtime.device import MIB
from pipeline.runtime.errors import MemoryLimitError, UsageError
from pipeline.tracking.tracker import NoTracker
from pipeline.training.trainer import resumable_state, train
from tests.pipeline.memory.measured_steps import settings_of
from tests.pipeline.training.recording import Recorder

pytestmark = pytest.mark.slow  # real and predicted steps of whole networks


def test_one_accumulation_step_fewer_would_not_fit() -> None:
    settings = settings_of(batch_size=6)

    def predicted(accumulation_steps: int) -> int:
        return predict_bytes(with_changes(settings, train={"accumulation_steps": accumulation_steps}), 150)

    for budget in (predicted(2), predicted(3) - 1):
        fit = min_accumulation(settings, 150, budget)
        assert predicted(fit.accumulation_steps) == fit.predicted_bytes <= budget
        assert predicted(fit.accumulation_steps - 1) > budget
        assert fit.micro_batch_size == -(-6 // fit.accumulation_steps)
    assert min_accumulation(settings, 150, predicted(1)).accumulation_steps == 1
    with pytest.raises(MemoryLimitError, match="not even"):
        min_accumulation(settings, 150, MIB)


def auto(**train_settings: object) -> Settings:
    overrides = {f"train.{name}": value for name, value in train_settings.items()}
    return load_settings(variant="exact", overrides={"train.batch_size": "auto", **overrides})


@pytest.mark.training
def test_a_batch_found_by_itself_keeps_the_images_of_a_step_and_resumes_with_its_division(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = {"effective_batch_size": 5, "memory_budget_gib": 1.0}
    whole = predict_bytes(auto(**overrides), 1284)
    budget = {**overrides, "memory_budget_gib": (whole - 1) / 2**30}
    settings = auto(**budget)

    def crash() -> None:
        raise MemoryError("as if killed")

    first, second, undisturbed = Recorder(at=4, do=crash), Recorder(), Recorder()
    with pytest.raises(MemoryError):
        train(settings, first)
    assert "5 images a step, 3 at a time (accumulation_steps 2)" in capsys.readouterr().err
    state = resumable_state(settings)
    assert state is not None
    assert state.accumulation_steps == 2
    monkeypatch.setattr(
        "pipeline.training.trainer.find_accumulation", lambda *arguments: 5
    )  # another GPU, say
    result = train(settings, second)
    assert result.accumulation_steps == 2
    monkeypatch.undo()
    monkeypatch.chdir(project)
    train(settings, undisturbed, folder=project / "whole")
    assert {**first.losses, **second.losses} == undisturbed.losses
    fixed = Recorder()
    train(
        load_settings(variant="exact", overrides={"train.batch_size": 5, "train.accumulation_steps": 2}),
        fixed,
        folder=project / "fixed",
    )
    assert fixed.losses == undisturbed.losses


def test_where_nothing_fits_auto_says_which_crop_would(project: Path) -> None:
    with pytest.raises(MemoryLimitError, match="not even"):
        train(auto(memory_budget_gib=0.001), NoTracker())


def test_the_budget_is_what_was_stated_or_most_of_the_machine(project: Path) -> None:
    cpu = torch.device("cpu")
    assert budget_bytes(auto(memory_budget_gib=11.0), cpu) == 11 * 2**30
    assert 0 < budget_bytes(auto(), cpu) < 2**50


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"train.batch_size": "auto", "train.accumulation_steps": 2}, "finds accumulation_steps itself"),
        ({"train.batch_size": 4, "train.accumulation_steps": 5}, "must not exceed"),
        ({"train.batch_size": 4, "train.effective_batch_size": 8}, "set it to null"),
        ({"train.ema": 1.0}, "less than 1"),
        ({"train.precision": "fp8"}, "fp16"),
        ({"train.debug": "yes"}, "few_batches"),
    ],
)
def test_batches_that_make_no_sense_are_refused(
    project: Path, overrides: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        load_settings(overrides=overrides)


def test_the_images_of_a_step_are_those_of_the_batch_or_the_effective_batch(project: Path) -> None:
    assert auto().train.images_per_step == 10
    assert auto(effective_batch_size=7).train.images_per_step == 7
    fixed = load_settings(overrides={"train.batch_size": 7, "train.accumulation_steps": 3}).train
    assert (fixed.images_per_step, fixed.micro_batch_size) == (7, 3)
