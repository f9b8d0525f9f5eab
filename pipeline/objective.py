"""From the network's stride-4 output and a target to the loss that is minimised.

The output is upsampled bilinearly to the target's size and handed, as rows, to the embedding losses of
`models.losses`, which leave out unlabelled pixels. The softmax baseline is left as it is usually built:
full-resolution logits of every class, since their memory is what is being compared against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.heads import EmbeddingHead
from models.losses import exact_cross_entropy, knn_cross_entropy, sampled_cross_entropy, separation_loss
from models.segmenter import Segmenter
from pipeline.data.dataset import IGNORE_INDEX
from pipeline.settings import LossSettings


@dataclass(frozen=True)
class Losses:
    """Scalars: `total` is what is differentiated."""

    total: Tensor
    cross_entropy: Tensor
    separation: Tensor


def segmentation_losses(
    segmenter: Segmenter,
    output: Tensor,
    target: Tensor,
    settings: LossSettings,
    generator: torch.Generator | None = None,
) -> Losses:
    """Cross-entropy over the labelled pixels plus the weighted separation of the class embeddings.

    Args:
        segmenter: whose head made `output`; holds the class embeddings.
        output: (N, D, h, w) pixel embeddings, or (N, C, h, w) logits of a softmax head.
        target: (N, H, W) int64 train ids or IGNORE_INDEX.
        settings: which loss.
        generator: draws the pixels of `pixel_budget` and the negatives of `sampled`; on the output's device.

    Returns:
        The losses; a batch without labelled pixels gives a finite zero cross-entropy.
    """
    rows, targets = full_resolution_rows(output, target.shape[-2:]), target.flatten()
    head = segmenter.head
    if not isinstance(head, EmbeddingHead):
        labelled = (targets != IGNORE_INDEX).sum().clamp(min=1)
        summed = F.cross_entropy(rows, targets, ignore_index=IGNORE_INDEX, reduction="sum")
        return Losses(summed / labelled, (summed / labelled).detach(), torch.zeros_like(summed).detach())
    rows, targets = _within_budget(rows, targets, settings.pixel_budget, generator)
    class_embeddings = head.class_embeddings  # (C, D), normalised once for both terms
    cross_entropy = embedding_cross_entropy(rows, class_embeddings, targets, settings, generator)
    total, separation = cross_entropy, torch.zeros_like(cross_entropy)
    if settings.separation_weight > 0 and len(class_embeddings) > 1:
        separation = separation_loss(
            class_embeddings,
            min_separation=settings.min_separation,
            work_bytes=settings.work_memory_mib * 2**20,
        )
        total = cross_entropy + settings.separation_weight * separation
    return Losses(total, cross_entropy.detach(), separation.detach())


def _within_budget(
    rows: Tensor, targets: Tensor, budget: int | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    if budget is None:
        return rows, targets
    return draw_pixels(rows, targets, torch.nonzero(targets != IGNORE_INDEX).squeeze(1), budget, generator)


def draw_pixels(
    rows: Tensor, targets: Tensor, labelled: Tensor, budget: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """At most `budget` of the labelled rows, each as likely as any other, and their targets.

    The mean over them estimates the mean over all. The loss's arithmetic is proportional to the rows, which
    is most of a step on a CPU; the network's does not change.

    Args:
        rows: (P, K).
        targets: (P,).
        labelled: (L,) int64, the rows to draw from.
        budget: how many to keep.
        generator: on the device of the rows.
    """
    if len(labelled) > budget:
        order = torch.randperm(len(labelled), generator=generator, device=labelled.device)
        labelled = labelled[order[:budget]]
    return rows.index_select(0, labelled), targets.index_select(0, labelled)


def full_resolution_rows(output: Tensor, size: Sequence[int]) -> Tensor:
    """(N, K, h, w) upsampled bilinearly to `size` (H, W), as float32 rows (N * H * W, K).

    With the channels last in memory the rows are a view of the upsampled map: no copy, and losses of rows are
    several times faster on the CPU than of maps, and deterministic on the GPU.
    """
    channels_last = output.float().contiguous(memory_format=torch.channels_last)
    upsampled = F.interpolate(channels_last, size=tuple(size), mode="bilinear", align_corners=False)
    return upsampled.permute(0, 2, 3, 1).reshape(-1, output.shape[1])


def embedding_cross_entropy(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    target: Tensor,
    settings: LossSettings,
    generator: torch.Generator | None,
) -> Tensor:
    """The cross-entropy that the settings name, of rows (P, D) against classes (C, D)."""
    common = {
        "temperature": settings.temperature,
        "similarity": settings.similarity,
        "ignore_index": IGNORE_INDEX,
        "work_bytes": settings.work_memory_mib * 2**20,
    }
    if settings.name == "exact":
        return exact_cross_entropy(pixel_embeddings, class_embeddings, target, **common)
    if settings.name == "knn":
        return knn_cross_entropy(
            pixel_embeddings, class_embeddings, target, num_negatives=settings.num_negatives, **common
        )
    return sampled_cross_entropy(
        pixel_embeddings,
        class_embeddings,
        target,
        num_negatives=settings.num_negatives,
        generator=generator,
        **common,
    )
