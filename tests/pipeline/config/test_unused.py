"""Settings said to be unused change nothing about a training, and otherwise do."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.load import load_settings
from pipeline.config.unused import NEEDS, unused
from pipeline.data.loading.batch import Batch
from pipeline.train_step.model import build_model
from pipeline.train_step.step import TrainStep

pytestmark = pytest.mark.training
OTHER: dict[str, Any] = {
    "model.embedding_dim": 8,
    "model.projection": "if_needed",
    "loss.similarity": "cosine",
    "loss.temperature": 0.2,
    "loss.min_separation": 0.9,
    "loss.separation_weight": 3.0,
    "loss.num_negatives": 2,
    "train.class_embedding_weight_decay": 0.1,
    "train.poly_power": 2.0,
}
WITHOUT = {"model.head": "softmax", "loss.name": "exact", "train.schedule": "cosine"}
SMALL = {"model.backbone": "test_resnet", "model.decoder_channels": 4, "model.embedding_dim": 4}


@cache
def trained(*changes: tuple[str, Any]) -> dict[str, torch.Tensor]:
    """All weights after a step that is not the first."""
    settings = load_settings(variant="exact", overrides={**SMALL, **dict(changes)})
    torch.manual_seed(0)
    segmenter = build_model(settings.model, 300)
    target = torch.randint(30, (2, 32, 32), generator=torch.Generator().manual_seed(2))
    images = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(1)).byte()
    TrainStep(segmenter.train(), settings, accumulation_steps=1)(Batch(images, target, (1, 2)), 3)
    return segmenter.state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.shape == other[name].shape and torch.equal(value, other[name]) for name, value in one.items()
    )


@pytest.mark.parametrize("key", NEEDS)
def test_it_changes_nothing_where_unused_and_something_where_used(project: Path, key: str) -> None:
    decider, used_with = NEEDS[key]
    tree = load_settings(variant="exact").model_dump(mode="json")
    for chosen in (*used_with, WITHOUT[decider]):
        idle = unused({key: OTHER[key], decider: chosen}, tree) == {key}
        assert idle == (chosen not in used_with)
        assert same(trained((decider, chosen)), trained((decider, chosen), (key, OTHER[key]))) == idle
