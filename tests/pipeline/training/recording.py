"""What tests of training share: a tracker that keeps the losses, a crash, a comparison of checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.checkpoint.format import load_checkpoint
from pipeline.tracking.tracker import NoTracker
from pipeline.training.trainer import TrainResult


@dataclass(frozen=True)
class Undisturbed:
    """A whole run: its result, its losses by step, and where its checkpoints are."""

    result: TrainResult
    losses: dict[int, float]
    folder: Path


UndisturbedRuns = Callable[..., Undisturbed]


def crash() -> None:
    """Ends a training in the middle, as if it was killed."""
    raise MemoryError("as if killed")


class Recorder(NoTracker):
    """Keeps the losses by step, and can do something at a step."""

    def __init__(self, at: int | None = None, do=None) -> None:
        self.losses: dict[int, float] = {}
        self.at, self.do = at, do

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if "train/loss" in metrics:
            self.losses[step] = metrics["train/loss"]
            if step == self.at:
                self.do()


def assert_same_checkpoints(one: Path, other: Path) -> None:
    """Of two folders: the best and the last checkpoint."""
    for name in ("best", "last"):
        assert same_weights(one / f"{name}.safetensors", other / f"{name}.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_checkpoint(one).model, load_checkpoint(other).model
    return all(torch.equal(first[name], second[name]) for name in first | second)
