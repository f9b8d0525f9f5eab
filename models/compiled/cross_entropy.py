"""Compute exact cross-entropy of rows and its gradients: products by torch, all else by compiled kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..embeddings import LossOptions, full_precision
from ..gradients import LossAndGradients, Needed
from ..tiled import cross_entropy as tiled
from ..tiled.chunks import Classes
from ..tiled.cross_entropy import labeled_rows, pixel_weight, row_chunks
from .lanes import num_workers, plan, run_lanes
from .sides import Buffers, DistanceSide, Lane, ProductSide, make_side


def cross_entropy_of_rows(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    bias: Tensor | None,
    needed: Needed,
    *,
    target: Tensor,
    class_weights: Tensor | None,
    options: LossOptions,
) -> LossAndGradients:
    """Compute the mean cross-entropy of rows, as `models.tiled.cross_entropy.cross_entropy_of_rows`.

    Hands over to that where a few pixels' logits of all classes exceed the work buffer, and where distances
    have a bias whose gradient is wanted.
    """
    rows = labeled_rows(target, options.ignore_index)
    count = len(target) if rows is None else len(rows)
    cut = plan(count, len(class_embeddings), class_embeddings.shape[1], options.work_bytes)
    if cut is None or needs_bias_of_distances(needed, options):
        return tiled.cross_entropy_of_rows(
            pixel_embeddings, class_embeddings, bias, needed,
            target=target, class_weights=class_weights, options=options,
        )  # fmt: skip
    classes = Classes.of(pixel_embeddings, class_embeddings, bias, class_weights)
    weight = pixel_weight(target if rows is None else target[rows], classes, options)
    side = make_side(classes, options, needed)
    lanes = [side.lane() for _ in range(cut.lanes)]
    buffers = [Buffers(cut.rows, side.table) for _ in range(num_workers(cut.lanes))]
    pixel_gradient = torch.zeros_like(pixel_embeddings) if needed.pixels else None

    def work(worker: int, lane: int, chosen: slice | Tensor) -> None:
        scaled = (pixel_embeddings[chosen].float() * side.scale).contiguous()
        gradient = side.compare_rows(scaled, target[chosen].contiguous(), buffers[worker], lanes[lane])
        if pixel_gradient is not None and gradient is not None:
            gradient.mul_(weight / options.temperature)
            pixel_gradient[chosen] = gradient.to(pixel_gradient.dtype)

    with full_precision(pixel_embeddings):
        run_lanes(list(row_chunks(rows, count, cut.rows)), cut.lanes, work)
        loss, of_classes, of_bias = finish(side, lanes, weight, class_embeddings, bias, needed)
    return LossAndGradients(loss, pixel_gradient, of_classes, of_bias)


def needs_bias_of_distances(needed: Needed, options: LossOptions) -> bool:
    """Tell whether the gradient of a bias of distances is wanted."""
    return needed.bias and not options.is_dot


def finish(
    side: ProductSide | DistanceSide,
    lanes: Sequence[Lane],
    weight: float,
    class_embeddings: Tensor,
    bias: Tensor | None,
    needed: Needed,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Sum over the lanes.

    Returns:
        The loss, and the gradients of class embeddings and bias in their dtype, each None where not wanted.
    """
    loss = torch.tensor(sum(lane.loss for lane in lanes) * weight, dtype=torch.float32)
    of_classes = of_bias = None
    if needed.classes:
        of_classes = side.class_gradient(lanes).mul_(weight).to(class_embeddings.dtype)
    if needed.bias and bias is not None:
        of_bias = side.bias_gradient(lanes).mul_(weight).to(bias.dtype)
    return loss, of_classes, of_bias
