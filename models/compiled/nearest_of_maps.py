"""Compare the pixels of low-resolution maps with their targets and the classes nearest to each, compiled.

For inner products. Logits are multiplied at low resolution and interpolated, as in `cross_entropy_of_maps`. A
pixel keeps those of its target and of the nearest other classes, and adds the weights of the gradients of
these alone to its four corners. So nothing is gathered, and no pixel has an embedding of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..embeddings import LossOptions, full_precision
from ..gradients import LossAndGradients, Needed
from ..tiled.chunks import Classes
from .cross_entropy import finish
from .cross_entropy_of_maps import LABELED_PER_CORNER
from .grid import CellBlock, Grid, blocks_of
from .lanes import num_workers, plan, run_lanes
from .search import MOST_NEAREST
from .sides import Buffers, ProductSide, Targets


def applies(
    low_res: Sequence[int],
    target_shape: Sequence[int],
    table_shape: Sequence[int],
    num_negatives: int,
    options: LossOptions,
    labeled: int | None = None,
) -> bool:
    """Tell whether `cross_entropy_of_nearest` applies, and is faster than comparing rows.

    Args:
        low_res: (h, w) of the maps.
        target_shape: (N, H, W).
        table_shape: (C, D).
        num_negatives: K.
        options: of the loss.
        labeled: how many pixels take part; None for all.
    """
    if not options.is_dot or not 1 <= num_negatives <= min(MOST_NEAREST, max(1, table_shape[0] // 4)):
        return False
    labeled = math.prod(target_shape) if labeled is None else labeled
    corners = target_shape[0] * math.prod(low_res)
    cut = plan(labeled, table_shape[0], table_shape[1], options.work_bytes)
    return labeled >= LABELED_PER_CORNER * corners > 0 and cut is not None and cut.rows >= 8


def cross_entropy_of_nearest(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    bias: Tensor | None,
    needed: Needed,
    *,
    target: Tensor,
    num_negatives: int,
    options: LossOptions,
) -> LossAndGradients:
    """Compute the mean cross-entropy over the target and the nearest other classes; `applies` must say so.

    Args:
        pixel_embeddings: (N, D, h, w).
        class_embeddings: (C, D).
        bias: (C,) added to the logits; or None.
        needed: which gradients are wanted.
        target: (N, H, W) int64, 0..C-1 or the options' `ignore_index`.
        num_negatives: K, at most C - 1.
        options: of the loss.
    """
    classes = Classes.of(pixel_embeddings, class_embeddings, bias, None)
    count = int((target != options.ignore_index).sum())
    cut = plan(count, len(class_embeddings), class_embeddings.shape[1], options.work_bytes)
    assert cut is not None
    side = ProductSide(classes, options, needed)
    grid = Grid(pixel_embeddings.shape[2:], target.shape[1:], options.align_corners)
    padded = grid.pad(pixel_embeddings.float() * side.scale)
    blocks = list(blocks_of(len(target), *grid.blocks(len(target), cut.rows // 2, cut.lanes)))
    lanes = [side.lane() for _ in range(cut.lanes)]
    buffers = [Buffers(cut.rows, side.table) for _ in range(num_workers(cut.lanes))]
    targets = Targets(target.contiguous().numpy(), options.ignore_index)
    gradients: dict[int, Tensor] = {}

    def work(worker: int, lane: int, numbered: tuple[int, CellBlock]) -> None:
        number, block = numbered
        corners = padded[block.corners]
        gradient = side.compare_nearest_of_cells(
            corners.flatten(0, 1), block, grid, targets, num_negatives, buffers[worker], lanes[lane]
        )
        if gradient is not None:
            gradients[number] = gradient.view(corners.shape)

    weight = 1 / count
    with full_precision(pixel_embeddings):
        run_lanes(list(enumerate(blocks)), cut.lanes, work)
        loss, of_classes, of_bias = finish(side, lanes, weight, class_embeddings, bias, needed)
    of_pixels = None
    if needed.pixels:
        whole = torch.zeros_like(padded)
        for number, block in enumerate(blocks):  # in a fixed order
            whole[block.corners] += gradients.pop(number)
        of_pixels = grid.unpad(whole).mul_(weight / options.temperature).to(pixel_embeddings.dtype)
    return LossAndGradients(loss, of_pixels, of_classes, of_bias)
