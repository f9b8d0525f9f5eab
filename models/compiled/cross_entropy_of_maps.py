"""Compute the exact cross-entropy of low-resolution maps at the resolution of their target, compiled.

Products with the classes are done at low resolution, as in `models.tiled.cross_entropy_of_maps`. Then one
pass over the classes interpolates a pixel's logits, takes their exponentials and the sum of these, and adds
the weights of the gradients back to the four low-resolution pixels around. What a pass touches fits the first
two levels of cache. Pixels without label are skipped. Any factor of upsampling, corners aligned or not, is
the same to it (`grid`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..embeddings import LossOptions, full_precision
from ..gradients import LossAndGradients, Needed
from ..tiled import cross_entropy_of_maps as tiled
from ..tiled.chunks import Classes
from ..tiled.cross_entropy import pixel_weight
from ..tiled.cross_entropy_of_maps import labeled_targets
from .cross_entropy import finish, needs_bias_of_distances
from .grid import CellBlock, Grid, blocks_of
from .lanes import num_workers, plan, run_lanes
from .sides import Buffers, Targets, make_side

LABELED_PER_CORNER = 2  # labeled pixels of a block for each of its corners; with fewer, rows are faster


def cross_entropy_of_maps(
    pixel_embeddings: Tensor,
    class_embeddings: Tensor,
    bias: Tensor | None,
    needed: Needed,
    *,
    target: Tensor,
    pixels: Tensor | None,
    class_weights: Tensor | None,
    options: LossOptions,
) -> LossAndGradients:
    """Compute the mean cross-entropy of maps, as `models.tiled.cross_entropy_of_maps.cross_entropy_of_maps`.

    Hands over to that where `cross_entropy_of_rows` hands over, too.
    """
    labeled = labeled_targets(target, pixels, options.ignore_index)
    classes = Classes.of(pixel_embeddings, class_embeddings, bias, class_weights)
    count, weight = len(labeled), pixel_weight(labeled, classes, options)
    del labeled
    cut = plan(count, len(class_embeddings), class_embeddings.shape[1], options.work_bytes)
    if cut is None or needs_bias_of_distances(needed, options):
        return tiled.cross_entropy_of_maps(
            pixel_embeddings, class_embeddings, bias, needed,
            target=target, pixels=pixels, class_weights=class_weights, options=options,
        )  # fmt: skip
    side = make_side(classes, options, needed)
    grid = Grid(pixel_embeddings.shape[2:], target.shape[1:], options.align_corners)
    padded = grid.pad(pixel_embeddings.float() * side.scale) if count else pixel_embeddings.new_zeros(0)
    blocks: list[CellBlock] = []
    if pixels is None:
        blocks, pixels = _parts(grid, target, options.ignore_index, cut.rows // 2, cut.lanes)
    else:
        pixels = pixels.sort().values  # so that those of a chunk lie close together
    pieces = [*blocks, *(pixels.split(cut.rows) if len(pixels) else ())]
    lanes = [side.lane() for _ in range(cut.lanes)]
    buffers = [Buffers(cut.rows, side.table) for _ in range(num_workers(cut.lanes))]
    targets = Targets(target.contiguous().numpy(), options.ignore_index)
    flat_target = target.flatten()
    gradients: dict[int, tuple[int, Tensor]] = {}

    def work(worker: int, lane: int, numbered: tuple[int, CellBlock | Tensor]) -> None:
        number, piece = numbered
        if isinstance(piece, CellBlock):
            corners = padded[piece.corners]
            gradient = side.compare_cells(
                corners.flatten(0, 1), piece, grid, targets, buffers[worker], lanes[lane]
            )
            if gradient is not None:
                gradients[number] = 0, gradient.view(corners.shape)
            return
        rows, weights = grid.corners_of(piece)
        embeddings = F.embedding_bag(rows, padded.flatten(0, 2), mode="sum", per_sample_weights=weights)
        gradient = side.compare_rows(embeddings, flat_target[piece], buffers[worker], lanes[lane])
        if gradient is not None:
            gradients[number] = _gather(rows, weights, gradient)

    with full_precision(pixel_embeddings):
        run_lanes(list(enumerate(pieces)), cut.lanes, work)
        loss, of_classes, of_bias = finish(side, lanes, weight, class_embeddings, bias, needed)
        of_pixels = None
        if needed.pixels:
            of_pixels = torch.zeros_like(pixel_embeddings)
        if of_pixels is not None and count:
            whole = torch.zeros_like(padded)
            for number, piece in enumerate(pieces):  # in a fixed order
                start, gradient = gradients.pop(number)
                if isinstance(piece, CellBlock):
                    whole[piece.corners] += gradient
                else:
                    whole.flatten(0, 2)[start : start + len(gradient)] += gradient
            of_pixels = grid.unpad(whole).mul_(weight / options.temperature).to(pixel_embeddings.dtype)
    return LossAndGradients(loss, of_pixels, of_classes, of_bias)


def _gather(corners: Tensor, weights: Tensor, gradient: Tensor) -> tuple[int, Tensor]:
    """Add the gradients (p, D) of pixels, times their weights (p, 4), to the rows at their corners (p, 4).

    Returns:
        The first of those rows, and the gradients (R, D) of that and the next ones up to the last.
    """
    first, last = (int(end) for end in corners.aminmax())
    found = gradient.new_zeros(last - first + 1, gradient.shape[1])
    of_corners = (weights[:, :, None] * gradient[:, None]).flatten(0, 1)
    return first, found.index_add_(0, corners.flatten() - first, of_corners)


def _parts(
    grid: Grid, target: Tensor, ignore_index: int, max_corners: int, fewest: int
) -> tuple[list[CellBlock], Tensor]:
    """Return the blocks of cells worth taking whole, and (B,) int64 labeled pixels outside of them.

    Args:
        grid: of the upsampling.
        target: (N, H, W).
        ignore_index: target of pixels that take no part.
        max_corners: of a block.
        fewest: blocks wanted.
    """
    labeled = target != ignore_index
    if max_corners < 4 or not grid.enlarges:
        return [], labeled.flatten().nonzero()[:, 0]
    # 1. Cut rows and columns of cells, and count the labeled pixels of every block between the cuts.
    rows, columns = grid.blocks(len(target), max_corners, fewest)
    row_edges, column_edges = grid.arrays[0][rows], grid.arrays[1][columns]
    of_rows = _sums_between(labeled.numpy(), row_edges, axis=1)  # (N, R, W)
    labeled_of_blocks = _sums_between(of_rows, column_edges, axis=2)
    # 2. Keep the blocks with enough of them.
    heights, widths = np.diff(rows) + 1, np.diff(columns) + 1
    worth = labeled_of_blocks >= LABELED_PER_CORNER * heights[:, None] * widths  # (N, R, K)
    blocks = [
        block for block, kept in zip(blocks_of(len(target), rows, columns), worth.flat, strict=True) if kept
    ]
    # 3. Find the labeled pixels of the others.
    for image, row, column in zip(*worth.nonzero(), strict=True):
        inside = slice(*row_edges[row : row + 2]), slice(*column_edges[column : column + 2])
        labeled[image, inside[0], inside[1]] = False
    return blocks, labeled.flatten().nonzero()[:, 0]


def _sums_between(values: np.ndarray, edges: np.ndarray, axis: int) -> np.ndarray:
    """Sum values along an axis from each edge to the next; zero where both are the same."""
    filled = np.diff(edges) > 0
    shape = list(values.shape)
    shape[axis] = len(filled)
    sums = np.zeros(shape, np.int32)
    place: Any = (*(slice(None),) * axis, filled)
    sums[place] = np.add.reduceat(values, edges[:-1][filled], axis=axis, dtype=np.int32)
    return sums
