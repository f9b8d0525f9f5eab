"""The optimizer and the rate of each step: the paper's SGD with polynomial decay, or AdamW with a cosine.

Three groups of parameters have a rate or a weight decay of their own: the backbone, the class embeddings, and
the rest (decoder and head). Whatever the schedule, the rate is a function of the step alone, so that nothing
about it need be saved to resume.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from models.segmenter import CLASS_ROWS, Segmenter
from pipeline.config.schema import TrainSettings


def build_optimizer(segmenter: Segmenter, train: TrainSettings) -> torch.optim.Optimizer:
    """Build SGD or AdamW over the backbone, the decoder, and the class embeddings.

    The backbone's learning rate is multiplied by `backbone_lr_multiplier`, that of the class embeddings or
    the classifier by `class_lr_multiplier`.

    Weight decay covers everything under SGD, as in the reference; AdamW leaves out biases and the weights of
    normalizations, as is usual. On the class embeddings decay only shortens vectors that are normalized at
    every use; `class_embedding_weight_decay` sets it apart.
    """
    groups = segmenter.parameter_groups()
    of_classes = train.class_embedding_weight_decay
    decoder, classifier = groups.decoder, []
    if train.class_lr_multiplier != 1.0:  # else one group: checkpoints know parameters by their place
        decoder = [named for named in groups.decoder if named[0] not in CLASS_ROWS]
        classifier = [named for named in groups.decoder if named[0] in CLASS_ROWS]
    parameter_sets = (
        (groups.backbone, train.backbone_lr_multiplier, train.weight_decay),
        (decoder, 1.0, train.weight_decay),
        (classifier, train.class_lr_multiplier, train.weight_decay),
        (
            groups.class_embeddings,
            train.class_lr_multiplier,
            train.weight_decay if of_classes is None else of_classes,
        ),
    )
    param_groups: list[dict[str, Any]] = []
    for named, lr_multiplier, weight_decay in parameter_sets:
        trained = [parameter for _, parameter in named if parameter.requires_grad]
        undecayed = [parameter for parameter in trained if _never_decays(parameter, train)]
        decayed = [parameter for parameter in trained if not _never_decays(parameter, train)]
        for parameters, decay in ((decayed, weight_decay), (undecayed, 0.0)):
            if parameters:
                param_groups.append(
                    {"params": parameters, "lr_multiplier": lr_multiplier, "weight_decay": decay}
                )
    rate, fused = train.learning_rate, _fused(segmenter, train)
    if train.optimizer == "adamw":
        return torch.optim.AdamW(param_groups, lr=rate, betas=(train.momentum, 0.999), fused=fused)
    return torch.optim.SGD(param_groups, lr=rate, momentum=train.momentum, fused=fused)


def _fused(segmenter: Segmenter, train: TrainSettings) -> bool | None:
    """Choose torch's `fused`. On the CPU it stays off: fused kernels only round differently there."""
    on_gpu = next(segmenter.parameters()).device.type == "cuda"
    wanted = on_gpu if train.fused_optimizer == "auto" else train.fused_optimizer
    return wanted or None


def _never_decays(parameter: torch.nn.Parameter, train: TrainSettings) -> bool:
    return train.optimizer == "adamw" and parameter.dim() < 2


def set_learning_rate(optimizer: torch.optim.Optimizer, train: TrainSettings, step: int) -> float:
    """Set the rate of the 0-based `step`, each group's times its factor; return that of decoder and head.

    `poly` is rate x (1 - step / steps)^power, `cosine` half a period from the rate to zero. During the
    warm-up it is that times the share of the warm-up's steps that are done, this one counted.
    """
    done = step / train.steps
    if train.schedule == "cosine":
        rate = train.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    else:
        rate = train.learning_rate * (1 - done) ** train.poly_power
    rate *= min(1.0, (step + 1) / max(train.warmup_steps, 1))
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_multiplier"]
    return rate
