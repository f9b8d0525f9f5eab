"""What tests of training share: a tracker that keeps the losses, and a comparison of checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from pipeline.checkpoint.format import load_checkpoint
from pipeline.tracking.tracker import NoTracker


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


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_checkpoint(one).model, load_checkpoint(other).model
    return all(torch.equal(first[name], second[name]) for name in first | second)
