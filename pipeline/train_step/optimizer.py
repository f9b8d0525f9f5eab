"""The optimizer and the rate of each step: the paper's SGD with polynomial decay, or AdamW with a cosine.

Three groups of parameters have a rate or a weight decay of their own: the backbone, the class embeddings, and
the rest (decoder and head). Whatever the schedule, the rate is a function of the step alone, so that nothing
about it need be saved to resume.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from models.segmenter import Segmenter
from pipeline.config.schema import TrainSettings


def build_optimizer(segmenter: Segmenter, settings: TrainSettings) -> torch.optim.Optimizer:
    """SGD or AdamW over the backbone (rate x `backbone_lr_multiplier`), the rest, and the class embeddings.

    Weight decay covers everything under SGD, as in the reference; AdamW leaves out biases and the weights of
    normalizations, as is usual. On the class embeddings decay only shortens vectors that are normalized at
    every use; `class_embedding_weight_decay` sets it apart.
    """
    groups = segmenter.parameter_groups()
    of_classes = settings.class_embedding_weight_decay
    parts = (
        (groups.backbone, settings.backbone_lr_multiplier, settings.weight_decay),
        (groups.decoder, 1.0, settings.weight_decay),
        (groups.class_embeddings, 1.0, settings.weight_decay if of_classes is None else of_classes),
    )
    options: list[dict[str, Any]] = []
    for named, rate_factor, weight_decay in parts:
        trained = [parameter for _, parameter in named if parameter.requires_grad]
        undecayed = [parameter for parameter in trained if _never_decays(parameter, settings)]
        decayed = [parameter for parameter in trained if not _never_decays(parameter, settings)]
        for parameters, decay in ((decayed, weight_decay), (undecayed, 0.0)):
            if parameters:
                options.append({"params": parameters, "rate_factor": rate_factor, "weight_decay": decay})
    rate, fused = settings.learning_rate, _fused(segmenter, settings)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(options, lr=rate, betas=(settings.momentum, 0.999), fused=fused)
    return torch.optim.SGD(options, lr=rate, momentum=settings.momentum, fused=fused)


def _fused(segmenter: Segmenter, settings: TrainSettings) -> bool | None:
    """None leaves torch its default, which is not fused: on the CPU fused kernels only round differently."""
    on_gpu = next(segmenter.parameters()).device.type == "cuda"
    wanted = on_gpu if settings.fused_optimizer == "auto" else settings.fused_optimizer
    return wanted or None


def _never_decays(parameter: torch.nn.Parameter, settings: TrainSettings) -> bool:
    return settings.optimizer == "adamw" and parameter.dim() < 2


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: TrainSettings, step: int) -> float:
    """Sets the rate of the 0-based `step`, each group's times its factor; returns that of decoder and head.

    `poly` is rate x (1 - step / steps)^power, `cosine` half a period from the rate to zero. During the
    warm-up it is that times the share of the warm-up's steps that are done, this one counted.
    """
    done = step / settings.steps
    if settings.schedule == "cosine":
        rate = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    else:
        rate = settings.learning_rate * (1 - done) ** settings.poly_power
    rate *= min(1.0, (step + 1) / max(settings.warmup_steps, 1))
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_factor"]
    return rate
