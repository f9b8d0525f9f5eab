"""Compute the training loss from the network's stride-4 output and a target.

The output is upsampled bilinearly to the target's size: by the losses `exact` and `knn` themselves, for
`sampled` to rows. Unlabeled pixels are left out. Either head takes any of these losses: the softmax head's
features are compared with the rows of its classifier, by inner products with a bias. The loss `dense` is the
usual way of computing the softmax head's exact loss, from full-resolution logits of every class: it is the
baseline whose memory we compare with. With a pixel budget only the drawn pixels are upsampled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.heads import EmbeddingHead, SoftmaxHead
from models.losses.exact import exact_cross_entropy
from models.losses.knn import knn_cross_entropy
from models.losses.sampled import sampled_cross_entropy
from models.losses.separation import separation_loss
from models.segmenter import Segmenter
from models.upsampling import full_resolution_rows, rows_of_pixels
from pipeline.config.schema import LossSettings
from pipeline.data.loading.batch import IGNORE_INDEX
from pipeline.runtime.device import MIB, threads_for
from pipeline.train_step.long_tail import LongTail

NOTHING = LongTail()


@dataclass(frozen=True)
class Losses:
    """Hold the scalar losses of a batch; `total` is what is differentiated."""

    total: Tensor
    cross_entropy: Tensor
    separation: Tensor


def segmentation_losses(
    segmenter: Segmenter,
    output: Tensor,
    target: Tensor,
    settings: LossSettings,
    generator: torch.Generator | None = None,
    long_tail: LongTail = NOTHING,
    threads: int | None = None,
) -> Losses:
    """Compute cross-entropy over the labeled pixels plus the weighted separation of the class embeddings.

    Args:
        segmenter: whose head made `output`; holds the class embeddings.
        output: (N, D, h, w) pixel embeddings, or the features of a softmax head.
        target: (N, H, W) int64 train ids or IGNORE_INDEX.
        settings: which loss.
        generator: draws the pixels of `pixel_budget` and the negatives of `sampled`; on the output's device.
        long_tail: offsets and weights of the classes; weights for `exact` and `dense` only.
        threads: of the exact cross-entropy, where it does not depend on their number; None for torch's.

    Returns:
        The losses; a batch without labeled pixels gives a finite zero cross-entropy.
    """
    head = segmenter.head
    if settings.name == "dense":
        logits = dense_logits(head, output)
        if long_tail.offsets is not None:  # before the upsampling, which leaves a constant as it is
            logits = logits + long_tail.offsets[:, None, None]
        rows, targets = labeled_rows(logits, target, settings.pixel_budget, generator)
        return dense_losses(rows, targets, long_tail.weights)
    class_embeddings = head.class_embeddings  # (C, D), normalized once for both terms
    classes = Classes(class_embeddings, head.bias, long_tail)
    if takes_maps(settings):
        with threads_for(threads if settings.name == "exact" else None):
            cross_entropy = map_cross_entropy(output, classes, target, settings, generator)
    else:
        rows, targets = labeled_rows(output, target, settings.pixel_budget, generator)
        cross_entropy = row_cross_entropy(rows, classes, targets, settings, generator)
    total, separation = cross_entropy, torch.zeros_like(cross_entropy)
    if needs_separation(head, settings):
        separation = separation_loss(
            class_embeddings,
            min_separation=settings.min_separation,
            work_bytes=settings.work_memory_mib * MIB,
        )
        total = cross_entropy + settings.separation_weight * separation
    return Losses(total, cross_entropy.detach(), separation.detach())


def takes_maps(settings: LossSettings) -> bool:
    """Tell whether the loss upsamples the output itself: `knn` does where all pixels take part."""
    return settings.name == "exact" or (settings.name == "knn" and settings.pixel_budget is None)


def needs_separation(head: EmbeddingHead | SoftmaxHead, settings: LossSettings) -> bool:
    """Tell whether the loss has the term that keeps class embeddings apart: not those of a classifier."""
    return isinstance(head, EmbeddingHead) and settings.separation_weight > 0 and len(head.class_table) > 1


def dense_logits(head: EmbeddingHead | SoftmaxHead, output: Tensor) -> Tensor:
    """Compute all logits (N, C, h, w) of a softmax head; settings refuse the loss `dense` of another."""
    assert isinstance(head, SoftmaxHead)
    return head.logits(output)


def dense_losses(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Losses:
    """Compute the baseline's loss: mean cross-entropy of (P, C) logits over the labeled of (P,) targets.

    With `weights` (C,) it is the weighted mean, as `F.cross_entropy` with a weight.
    """
    if weights is not None:
        some = bool((targets != IGNORE_INDEX).any())
        ignored = logits.sum() * 0  # of a batch without labeled pixels, where the weighted mean is 0 / 0
        mean = F.cross_entropy(logits, targets, weights, ignore_index=IGNORE_INDEX) if some else ignored
        return Losses(mean, mean.detach(), torch.zeros_like(mean).detach())
    labeled = (targets != IGNORE_INDEX).sum().clamp(min=1)
    mean = F.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum") / labeled
    return Losses(mean, mean.detach(), torch.zeros_like(mean).detach())


def labeled_rows(
    output: Tensor, target: Tensor, budget: int | None, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Return output and targets of every pixel; with a budget, of so many labeled pixels at most.

    Each labeled pixel is as likely as any other to be drawn, so the mean over them estimates the mean over
    all. The loss's work is proportional to the rows, which is most of a step on a CPU; the network's stays.

    Args:
        output: (N, K, h, w).
        target: (N, H, W) int64.
        budget: how many pixels to keep; None keeps all, the unlabeled too.
        generator: on the device of the output.

    Returns:
        float32 rows (P, K), int64 targets (P,).
    """
    size, targets = target.shape[-2:], target.flatten()
    if budget is None:
        return full_resolution_rows(output, size), targets
    pixels = draw_pixels(targets, budget, generator)
    return rows_of_pixels(output, size, pixels), targets.index_select(0, pixels)


def draw_pixels(targets: Tensor, budget: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw at most `budget` labeled pixels; return (B,) int64 indices into the (P,) targets."""
    labeled = torch.nonzero(targets != IGNORE_INDEX).squeeze(1)
    if len(labeled) <= budget:
        return labeled
    return labeled[torch.randperm(len(labeled), generator=generator, device=labeled.device)[:budget]]


@dataclass(frozen=True)
class Classes:
    """Hold what pixels are compared with: embeddings (C, D), and the bias (C,) of a classifier or None."""

    embeddings: Tensor
    bias: Tensor | None = None
    long_tail: LongTail = NOTHING


def map_cross_entropy(
    output: Tensor,
    classes: Classes,
    target: Tensor,
    settings: LossSettings,
    generator: torch.Generator | None,
) -> Tensor:
    """Compute the cross-entropy `exact` or `knn` of an output (N, D, h, w) against a target (N, H, W)."""
    options = loss_options(settings, classes)
    if settings.name == "knn":
        options["num_negatives"] = settings.num_negatives
        return knn_cross_entropy(output, classes.embeddings, target, **options)
    pixels = None
    if settings.pixel_budget is not None:
        pixels = draw_pixels(target.flatten(), settings.pixel_budget, generator)
    options["class_weights"] = classes.long_tail.weights
    return exact_cross_entropy(output, classes.embeddings, target, pixels=pixels, **options)


def row_cross_entropy(
    rows: Tensor,
    classes: Classes,
    target: Tensor,
    settings: LossSettings,
    generator: torch.Generator | None,
) -> Tensor:
    """Compute the cross-entropy `knn` or `sampled` of rows (P, D) with targets (P,)."""
    options = {**loss_options(settings, classes), "num_negatives": settings.num_negatives}
    if settings.name == "knn":
        return knn_cross_entropy(rows, classes.embeddings, target, **options)
    return sampled_cross_entropy(rows, classes.embeddings, target, generator=generator, **options)


def loss_options(settings: LossSettings, classes: Classes) -> dict[str, Any]:
    """Return the keyword arguments that all losses share.

    Args:
        settings: temperature and similarity count for embeddings only.
        classes: those with a bias are a classifier's, whose logits are plain inner products.
    """
    common = {"ignore_index": IGNORE_INDEX, "work_bytes": settings.work_memory_mib * MIB}
    bias, offsets = classes.bias, classes.long_tail.offsets
    if bias is not None:
        added = bias if offsets is None else bias + offsets
        return {**common, "similarity": "dot", "temperature": 1.0, "bias": added}
    options = {**common, "similarity": settings.similarity, "temperature": settings.temperature}
    return options if offsets is None else {**options, "bias": offsets}
