"""Compute exact cross-entropy of rows and both its gradients tile by tile, in one pass.

The softmax of one tile of pixels x classes gives the tile's part of the loss and of the gradients. Then the
next tile overwrites it. The gradients are ready when the loss is; backward only scales them.

A tile spans all classes as long as at least 8 pixels of such a tile fit the work buffer. With more classes
(a hundred thousand) it spans some, and each tile is computed twice: for log-sum-exp, then for the gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..embeddings import LossOptions, full_precision
from ..gradients import LossAndGradients, Needed
from .chunks import ClassBlock, Classes, PixelChunk
from .distance_tiles import DistanceTiles
from .dot_tiles import DotTiles
from .threads import for_each, num_workers, pieces_of
from .tiles import Tiles

# Tile size. Distance needs two tile buffers and a temporary, so a tile gets 1/4 of the work buffer. Cosine
# needs one; 1/8 is fastest (fits the cache), up to 3/4 with very many classes. With fewer pixels in a tile of
# all classes than these, reading and writing the class gradient takes most of the time.
_FEWEST_ROWS, _ENOUGH_ROWS = 8, 16
_BLOCK_ROWS = 512  # pixels in a tile of some classes
_CHUNK_ROWS = 2048  # pixels prepared together for tiles of all classes


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
    """Compute the mean cross-entropy of rows; the public function is `losses.exact.exact_cross_entropy`.

    Args:
        pixel_embeddings: (P, D).
        class_embeddings: (C, D).
        bias: (C,) added to the logits; or None.
        needed: which gradients are wanted.
        target: (P,) int64, 0..C-1 or the options' `ignore_index`.
        class_weights: (C,), of the pixels in the mean by their target; None for all one.
        options: of the loss.
    """
    classes = Classes.of(pixel_embeddings, class_embeddings, bias, class_weights)
    dtype = classes.embeddings.dtype
    rows = labeled_rows(target, options.ignore_index)
    count = len(target) if rows is None else len(rows)
    weight = pixel_weight(target if rows is None else target[rows], classes, options)
    workers, size = plan_tiles(count, classes.embeddings, options)
    pixel_gradient = torch.zeros_like(pixel_embeddings) if needed.pixels else None
    with full_precision(pixel_embeddings):
        tiles = make_tiles(classes, options, size, needed, workers)
        totals = torch.zeros(workers, dtype=torch.float64, device=target.device)

        def work(worker: int, chosen: slice | Tensor) -> None:
            own = tiles[worker]
            scaled = pixel_embeddings[chosen].to(dtype) / options.temperature
            chunk = own.chunk(scaled, target[chosen])
            losses, gradient = compare(own, chunk, size, weight, needed.pixels)
            totals[worker] += losses.sum(dtype=torch.float64)
            if pixel_gradient is not None and gradient is not None:
                pixel_gradient[chosen] = gradient.div_(options.temperature).to(pixel_gradient.dtype)

        for_each(list(row_chunks(rows, count, size.chunk_rows)), work, workers)
        of_classes = class_side_gradients(tiles, class_embeddings, bias, needed)
    return LossAndGradients((totals.sum() * weight).to(dtype), pixel_gradient, *of_classes)


def pixel_weight(targets: Tensor, classes: Classes, options: LossOptions) -> float:
    """Return one divided by what the sum of the losses is divided by: the weight of each pixel's loss.

    Args:
        targets: those of the labeled pixels, of any shape.
        classes: whose weights count.
        options: `reduction` counts.

    Returns:
        1 for a sum; else one over the sum of the pixels' class weights, zero where that is zero.
    """
    if options.reduction == "sum":
        return 1.0
    total = float(targets.numel())
    if classes.weights is not None:
        pixels = torch.bincount(targets.flatten(), minlength=len(classes.weights))
        total = float(pixels.double() @ classes.weights.double())
    return 1 / total if total > 0 else 0.0


def labeled_rows(target: Tensor, ignore_index: int) -> Tensor | None:
    """Return the indices of the labeled pixels, or None where all are labeled."""
    labeled = target != ignore_index
    return None if bool(labeled.all()) else labeled.nonzero()[:, 0]


def row_chunks(rows: Tensor | None, count: int, size: int) -> Iterator[slice | Tensor]:
    """Yield what selects `count` rows, `size` at a time: slices, or pieces of `rows`."""
    for first in range(0, count, size):
        last = min(first + size, count)
        yield slice(first, last) if rows is None else rows[first:last]


@dataclass(frozen=True)
class TileSize:
    """Say how large a tile is.

    Attributes:
        rows: pixels of a tile.
        chunk_rows: pixels that are prepared together, for one tile or several.
        columns: classes of a tile.
    """

    rows: int
    chunk_rows: int
    columns: int


def plan_tiles(
    num_pixels: int, classes: Tensor, options: LossOptions, channels: int | None = None
) -> tuple[int, TileSize]:
    """Choose the number of threads, and the tiles of each, within one work buffer for all.

    Args:
        num_pixels: that are compared.
        classes: (C, D).
        options: of the loss.
        channels: numbers of an embedding that are held for each pixel; None for D.
    """
    channels = classes.shape[1] if channels is None else channels
    pieces = pieces_of(num_pixels, len(classes))
    gradient_bytes = classes.nbytes * (classes.shape[1] + 1) // classes.shape[1]
    workers = num_workers(classes.device, pieces, options.work_bytes, gradient_bytes)
    elements = options.work_bytes // workers // 8 // classes.element_size()
    return workers, _tile_size(-(-num_pixels // workers), len(classes), channels, elements, options.is_dot)


def _tile_size(num_pixels: int, num_classes: int, channels: int, elements: int, is_dot: bool) -> TileSize:
    max_elements = max(1, 2 * elements)
    if is_dot:
        max_elements = max(1, min(6 * elements, max(elements, _ENOUGH_ROWS * num_classes)))
    # A chunk takes about six times its channels a pixel.
    max_rows = max(1, min(num_pixels, max_elements // (4 * (channels + 2))))
    rows, columns = min(max_rows, max_elements // num_classes), num_classes
    if rows < min(max_rows, _FEWEST_ROWS):
        rows = min(max_rows, _BLOCK_ROWS)
        columns = min(num_classes, max(1, max_elements // rows))
    chunk_rows = max(rows, min(max_rows // 4, _CHUNK_ROWS)) if columns == num_classes else rows
    return TileSize(rows, chunk_rows, columns)


def make_tiles(
    classes: Classes, options: LossOptions, size: TileSize, needed: Needed, workers: int
) -> list[Tiles]:
    """Make the tiles of the similarity, one for each worker.

    Args:
        classes: embeddings, bias and weights.
        options: of the loss.
        size: of a tile.
        needed: which gradients are wanted.
        workers: how many.
    """
    kind = DotTiles if options.is_dot else DistanceTiles
    first = kind(classes, options, size.rows * size.columns, needed.classes, needed.bias)
    return [first, *(first.clone_for_worker() for _ in range(workers - 1))]


def class_side_gradients(
    tiles: Sequence[Tiles], class_embeddings: Tensor, bias: Tensor | None, needed: Needed
) -> tuple[Tensor | None, Tensor | None]:
    """Sum the gradients (C, D) of the class embeddings and (C,) of the bias over all workers.

    Args:
        tiles: of the workers.
        class_embeddings: whose dtype the gradient gets.
        bias: likewise.
        needed: which gradients are wanted.
    """
    of_classes = of_bias = None
    if needed.classes:
        of_classes = sum_in_order([own.class_gradient() for own in tiles]).to(class_embeddings.dtype)
    if needed.bias and bias is not None:
        of_bias = sum_in_order([own.bias_gradient() for own in tiles]).to(bias.dtype)
    return of_classes, of_bias


def sum_in_order(tensors: Sequence[Tensor]) -> Tensor:
    """Add tensors from the first to the last."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def compare(
    tiles: Tiles, chunk: PixelChunk, size: TileSize, weight: float, need_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Compare p pixels, given by their own embeddings, with all classes.

    Returns:
        Their (p, 1) losses times the class weights, and the (p, D) gradient of the loss for e' times
        `weight`, or None where not needed. The gradients of the classes are added to those of `tiles`.
    """
    num_classes = chunk.num_classes
    if size.columns == num_classes:
        return tiles.add_whole(chunk, size.rows, weight, need_gradient)
    starts = range(0, num_classes, size.columns)
    blocks = [ClassBlock(start, min(start + size.columns, num_classes)) for start in starts]
    lse = tiles.softmax(chunk, blocks[0])[1]
    for block in blocks[1:]:
        lse = torch.logaddexp(lse, tiles.softmax(chunk, block)[1])
    losses = (lse - chunk.target_logits).clamp_min_(0)  # less than zero only by rounding
    gradient = torch.zeros_like(chunk.scaled) if need_gradient else None
    if gradient is None and not tiles.need_gradient:
        blocks = []
    one_minus_p_target = chunk.weighted(torch.expm1(-losses).mul_(-weight))
    for block in blocks:
        probs, tile_lse = tiles.softmax(chunk, block)
        scale = chunk.weighted((tile_lse - lse).exp_().mul_(weight)).clamp_min_(1e-30)
        block_gradient = tiles.add_gradients(
            probs, chunk, block, scale, one_minus_p_target, need_gradient, weight
        )
        if gradient is not None and block_gradient is not None:
            gradient += block_gradient
    chunk.weighted(losses)
    tiles.finish(chunk, losses, gradient, weight)
    return losses, gradient
