"""A step is divided into as few micro-batches as fit, and batch_size: auto does so by itself."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch

from pipeline.config.load import load_settings
from pipeline.config.schema import LossSettings, Settings
from pipeline.memory import batch_size, loss_footprint
from pipeline.memory.batch_size import budget_bytes, largest_batch, min_accumulation
from pipeline.memory.loss_footprint import Channels, PixelSource, probe_work_memory
from pipeline.memory.predict import predict_bytes, with_changes
from pipeline.runtime.device import MIB
from pipeline.runtime.errors import MemoryLimitError, UsageError
from pipeline.tracking.tracker import NoTracker
from pipeline.training.trainer import resumable_state, train
from tests.pipeline.memory.measured_steps import settings_of
from tests.pipeline.training.recording import Recorder

pytestmark = pytest.mark.slow  # real and predicted steps of whole networks


@pytest.fixture
def predicted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predict each step once in a test, as one takes a second."""
    known: dict[tuple[str, int], int] = {}

    def predict(settings: Settings, num_classes: int) -> int:
        key = settings.train.model_dump_json(), num_classes
        if key not in known:
            known[key] = predict_bytes(settings, num_classes)
        return known[key]

    monkeypatch.setattr(batch_size, "predict_bytes", predict)


def test_one_accumulation_step_fewer_would_not_fit(predicted_once: None) -> None:
    settings = settings_of(batch_size=6)

    def predicted(accumulation_steps: int) -> int:
        divided = with_changes(settings, train={"accumulation_steps": accumulation_steps})
        return batch_size.predict_bytes(divided, 150)

    for budget in (predicted(2), predicted(3) - 1):
        fit = min_accumulation(settings, 150, budget)
        assert predicted(fit.accumulation_steps) == fit.predicted_bytes <= budget
        assert predicted(fit.accumulation_steps - 1) > budget
        assert fit.micro_batch_size == -(-6 // fit.accumulation_steps)
    assert min_accumulation(settings, 150, predicted(1)).accumulation_steps == 1
    with pytest.raises(MemoryLimitError, match="not even"):
        min_accumulation(settings, 150, MIB)


def test_the_largest_batch_is_found_with_few_predictions_that_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory is nearly linear in the images; brute force says which number is the last to fit."""

    def bytes_of(images: int) -> int:
        return 20_000_000 + 925_000 * images + 3_000 * (images % 7) + (50_000 * images if images < 3 else 0)

    monkeypatch.setattr(
        batch_size, "predict_bytes", lambda settings, num_classes: bytes_of(settings.train.batch_size)
    )
    for budget in (25_000_000, 10**9, 11 * 2**30):
        fit = largest_batch(settings_of(), 150, budget)
        assert fit.predicted_bytes <= budget < fit.next_predicted_bytes
        assert fit.batch_size == next(n for n in range(1, 10**6) if bytes_of(n + 1) > budget)
        told = capsys.readouterr().err.splitlines()
        assert len(told) <= 10
        assert told[0].startswith("1 image at a time: 0.02 GiB")


@pytest.mark.parametrize("images", [1, 2, 7, 64, 1_000])
def test_the_fewest_accumulation_steps_are_found_with_few_predictions_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: int
) -> None:
    def bytes_of(micro_batch_size: int) -> int:
        return 20_000_000 + 925_000 * micro_batch_size + 3_000 * (micro_batch_size % 7)

    monkeypatch.setattr(
        batch_size, "predict_bytes", lambda settings, num_classes: bytes_of(settings.train.micro_batch_size)
    )
    for budget in (20_925_000 + 3_000, 22 * 10**6, 25 * 10**6, 60 * 10**6, 10**10):
        fit = min_accumulation(settings_of(batch_size=images), 150, budget)
        steps = next(n for n in range(1, images + 1) if bytes_of(-(-images // n)) <= budget)
        assert (fit.accumulation_steps, fit.micro_batch_size) == (steps, -(-images // steps))
        assert fit.predicted_bytes == bytes_of(fit.micro_batch_size)
        assert len(capsys.readouterr().err.splitlines()) <= 6


def test_the_loss_is_probed_once_for_all_large_batches() -> None:
    loss, channels = LossSettings(), Channels(16, classifier=False)
    loss_footprint._map_bytes.cache_clear()
    found = {
        probe_work_memory(loss, 300, channels, PixelSource(pixels, maps=True, factor=4))
        for pixels in (2**20, 2**21, 2**22)
    }
    assert len(found) == 1
    assert loss_footprint._map_bytes.cache_info().misses <= 3


def auto(**train_settings: object) -> Settings:
    overrides = {f"train.{name}": value for name, value in train_settings.items()}
    return load_settings(variant="exact", overrides={"train.batch_size": "auto", **overrides})


@pytest.mark.training
def test_a_batch_found_by_itself_keeps_the_images_of_a_step_and_resumes_with_its_division(
    project: Path, capsys: pytest.CaptureFixture[str], predicted_once: None
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
    with mock.patch("pipeline.training.trainer.find_accumulation", return_value=5):  # another GPU, say
        result = train(settings, second)
    assert result.accumulation_steps == 2
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
