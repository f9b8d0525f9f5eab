"""A loss or weight that is no longer finite ends the training, named, with good checkpoints kept."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint.format import load_checkpoint
from pipeline.config.load import load_settings
from pipeline.config.paths import checkpoint_folder
from pipeline.runtime.errors import KilosegError
from pipeline.tracking.tracker import NoTracker
from pipeline.train_step.loss import Losses, segmentation_losses
from pipeline.training.state import READ_EVERY
from pipeline.training.trainer import train


def broken_from(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count(1)

    def broken(*arguments: object) -> Losses:
        losses = segmentation_losses(*arguments)  # type: ignore[arg-type]
        factor = float("nan") if next(calls) >= call else 1.0
        return Losses(losses.total * factor, losses.cross_entropy * factor, losses.separation)

    monkeypatch.setattr("pipeline.train_step.step.segmentation_losses", broken)


@pytest.mark.training
def test_a_nan_is_named_soon_though_the_loss_is_read_seldom(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    real = torch.Tensor.tolist
    reads = []
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: (reads.append(1), real(tensor))[1])
    broken_from(19, monkeypatch)
    from pipeline.train_step.step import TrainStep

    step = TrainStep.__call__
    monkeypatch.setattr(
        TrainStep,
        "__call__",
        lambda self, batch, at: (seen.append(batch.image_ids), step(self, batch, at))[1],
    )
    often = {"train.steps": 100_000, "train.validate_every": 50_000, "train.checkpoint_every": 50_000}
    with pytest.raises(KilosegError, match="no longer finite") as caught:
        train(load_settings(variant="exact", overrides=often), NoTracker())
    assert caught.value.exit_code == 1
    assert caught.value.where is not None
    ids = [", ".join(map(str, images)) for images in (seen[18], seen[17])]
    assert f"step 19, images {ids[0]}; the update before was step 18, images {ids[1]}" in caught.value.where
    assert 19 <= len(seen) <= 19 + READ_EVERY


@pytest.mark.training
@pytest.mark.parametrize("call", [5, 6])
def test_no_checkpoint_is_written_after_a_nan(
    project: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    settings = load_settings(variant="exact", overrides={"train.steps": 500, "train.validate_every": 3})
    broken_from(call, monkeypatch)
    with pytest.raises(KilosegError, match="no longer finite"):
        train(settings, NoTracker())
    for name, step in (("last", 4), ("previous", 2), ("best", 3)):
        checkpoint = load_checkpoint(checkpoint_folder(settings) / f"{name}.safetensors")
        assert checkpoint.step == step
        assert all(tensor.isfinite().all() for tensor in checkpoint.model.values())


@pytest.mark.training
def test_weights_that_an_update_spoilt_are_not_saved_though_the_loss_was_finite(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = itertools.count(1)

    def spoils(*arguments: object) -> Losses:
        losses = segmentation_losses(*arguments)  # type: ignore[arg-type]
        return Losses(losses.total * (float("inf") if next(calls) == 4 else 1), *_scalars(losses))

    monkeypatch.setattr("pipeline.train_step.step.segmentation_losses", spoils)
    settings = load_settings(variant="exact")
    with pytest.raises(KilosegError, match=r"the weights are no longer finite(.|\n)*step 4, images \d+"):
        train(settings, NoTracker())
    assert load_checkpoint(checkpoint_folder(settings) / "last.safetensors", header_only=True).step == 2


def _scalars(losses: Losses) -> tuple[torch.Tensor, torch.Tensor]:
    return losses.cross_entropy, losses.separation


@pytest.mark.training
def test_a_loss_that_is_no_longer_finite_names_step_and_images(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipeline.train_step.step as module

    real = module.segmentation_losses

    def broken(*arguments):
        losses = real(*arguments)
        return module.Losses(losses.total, losses.cross_entropy * float("nan"), losses.separation)

    monkeypatch.setattr(module, "segmentation_losses", broken)
    with pytest.raises(KilosegError, match=r"no longer finite(.|\n)*images \d+, \d+") as caught:
        train(load_settings(variant="exact"), NoTracker())
    assert caught.value.exit_code == 1
