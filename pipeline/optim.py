"""The paper's optimiser: SGD with a lower rate for the backbone and a polynomial decay per step."""

from __future__ import annotations

import torch

from models.segmenter import Segmenter
from pipeline.settings import TrainSettings


def build_optimizer(segmenter: Segmenter, settings: TrainSettings) -> torch.optim.SGD:
    """SGD over the backbone (rate x `backbone_rate_factor`), and the rest, in that order.

    Weight decay covers everything, as in the reference; on the class embeddings it only shortens vectors that
    are normalised at every use.
    """
    backbone = list(segmenter.backbone.parameters())
    known = {id(parameter) for parameter in backbone}
    rest = [parameter for parameter in segmenter.parameters() if id(parameter) not in known]
    groups = [
        {"params": backbone, "rate_factor": settings.backbone_rate_factor},
        {"params": rest, "rate_factor": 1.0},
    ]
    return torch.optim.SGD(
        groups, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: TrainSettings, step: int) -> float:
    """Sets rate x (1 - step / steps)^power for the 0-based `step`; returns that of the decoder and head.

    During the warm-up it is that times the share of the warm-up's steps that are done, this one counted. It
    is a function of the step alone, so that nothing about it need be saved to resume.
    """
    rate = settings.learning_rate * (1 - step / settings.steps) ** settings.poly_power
    rate *= min(1.0, (step + 1) / max(settings.warmup_steps, 1))
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]
    return rate
