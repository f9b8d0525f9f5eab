"""Compute the exact cross-entropy of low-resolution maps at the resolution of their target, in plain torch.

Works as `models.tiled.cross_entropy`, but embeddings at full resolution, and their gradients, exist for a few
pixels at a time. Where the factor of upsampling is whole, the matrix products are done at low resolution:
interpolation is linear, so products of interpolated embeddings are interpolated products. The gradients'
weights go the other way, by the transpose, before they meet the classes.

At stride 4 this leaves a tenth of the multiplications. All pixels of a block are computed, so it pays where
most of them are labeled. The labeled pixels of other blocks are interpolated and compared one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ..embeddings import LossOptions, full_precision
from ..gradients import LossAndGradients, Needed
from ..upsampling import CellUpsampling, corners_of_pixels, whole_factor
from .chunks import Classes
from .cross_entropy import (
    TileSize,
    class_side_gradients,
    compare,
    make_tiles,
    pixel_weight,
    plan_tiles,
)
from .threads import for_each
from .tiles import Tiles

_MIN_LABELED = 0.6  # of a block's pixels; with fewer, comparing the labeled ones one by one is faster
_MAX_CELLS = 1024  # of a block: small enough that unlabeled regions fill whole blocks, which are left out


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
    """Compute the mean cross-entropy of maps; the public function is `losses.exact.exact_cross_entropy`.

    Args:
        pixel_embeddings: (N, D, h, w).
        class_embeddings: (C, D).
        bias: (C,) added to the logits; or None.
        needed: which gradients are wanted.
        target: (N, H, W) int64, 0..C-1 or the options' `ignore_index`.
        pixels: (B,) int64 in 0..N * H * W - 1, the only ones that take part, all labeled; or None.
        class_weights: (C,), of the pixels in the mean by their target; None for all one.
        options: of the loss.
    """
    classes = Classes.of(pixel_embeddings, class_embeddings, bias, class_weights)
    dtype, num_classes = classes.embeddings.dtype, len(classes.embeddings)
    labeled = labeled_targets(target, pixels, options.ignore_index)
    count, weight = len(labeled), pixel_weight(labeled, classes, options)
    del labeled
    workers, size = plan_tiles(count, classes.embeddings, options)
    channels = _channels_of_blocks(pixel_embeddings, target, options)
    block_size = plan_tiles(count, classes.embeddings, options, channels)[1]
    with full_precision(pixel_embeddings):
        scaled = pixel_embeddings.to(dtype) / options.temperature
        maps = _Maps(scaled, target, options)
        del scaled
        blocks: list[_Block] = []
        if pixels is None:
            blocks, pixels = maps.parts(block_size.rows if block_size.columns == num_classes else 0)
        largest = max(size, block_size, key=lambda one: one.rows * one.columns)
        tiles = make_tiles(classes, options, largest, needed, workers)
        gradients = [torch.zeros_like(maps.padded) for _ in (tiles if needed.pixels else ())]
        totals = torch.zeros(workers, dtype=torch.float64, device=target.device)

        def work(worker: int, part: list[_Block] | Tensor) -> None:
            own, gradient = tiles[worker], gradients[worker] if needed.pixels else None
            if isinstance(part, Tensor):
                losses = maps.compare_pixels(own, part, size, weight, gradient)
            else:
                losses = maps.compare_blocks(own, part, weight, gradient)
            totals[worker] += losses.sum(dtype=torch.float64)

        single = pixels.split(size.chunk_rows) if len(pixels) else ()
        for_each([*_groups(blocks, maps.factor, block_size.chunk_rows), *single], work, workers)
        of_classes = class_side_gradients(tiles, class_embeddings, bias, needed)
        pixel_gradient = None
        if needed.pixels:
            whole = maps.unpadded(torch.stack(gradients).sum(dim=0)).div_(options.temperature)
            pixel_gradient = whole.to(pixel_embeddings.dtype)
    return LossAndGradients((totals.sum() * weight).to(dtype), pixel_gradient, *of_classes)


def _channels_of_blocks(pixel_embeddings: Tensor, target: Tensor, options: LossOptions) -> int:
    """Return the numbers of an embedding that a block holds for each pixel at full resolution.

    Distances hold all D. Inner products hold D only at low resolution: 9 pixels for the 4 s s of 2 x 2 cells.
    """
    dim = pixel_embeddings.shape[1]
    factor = whole_factor(pixel_embeddings.shape[2:], target.shape[1:]) or 1
    return -(-dim * 9 // (4 * factor**2)) if options.is_dot and factor > 1 else dim


def labeled_targets(target: Tensor, pixels: Tensor | None, ignore_index: int) -> Tensor:
    """Return the targets (B,) of the pixels that take part."""
    return target.flatten()[pixels] if pixels is not None else target[target != ignore_index]


@dataclass(frozen=True)
class _Block:
    """Name a block of cells (`CellUpsampling`) of one image, counted from the upper left cell."""

    image: int
    rows: slice
    columns: slice
    all_labeled: bool

    @property
    def cells(self) -> tuple[int, int]:
        """Count the rows and the columns."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def pixels(self) -> tuple[int, slice, slice, slice, slice]:
        """Index the block's pixels in the target in cells."""
        return self.image, slice(None), slice(None), self.rows, self.columns

    @property
    def corners(self) -> tuple[int, slice, slice]:
        """Index the pixels in the padded maps that the block is interpolated from."""
        rows, columns = (slice(cells.start, cells.stop + 1) for cells in (self.rows, self.columns))
        return self.image, rows, columns


class _Maps:
    """Hold maps at low resolution and the target at full, and cut them into blocks and single pixels.

    Args:
        scaled: (N, D, h, w), e'.
        target: (N, H, W).
        options: `ignore_index` and `align_corners` count.

    Attributes:
        padded: (N, h+2, w+2, D) e', with the edge pixels repeated once.
        factor: s, of the upsampling; 1 where pixels are interpolated one by one: it is no whole number, or
            corners are aligned.
    """

    def __init__(self, scaled: Tensor, target: Tensor, options: LossOptions) -> None:
        self._low_res, self._full_res = scaled.shape[2:], target.shape[1:]
        mode = "replicate" if scaled.numel() > 0 else "constant"
        self.padded = F.pad(scaled, (1, 1, 1, 1), mode=mode).permute(0, 2, 3, 1).contiguous()
        self._target, self._ignore_index = target, options.ignore_index
        self._align_corners = options.align_corners
        whole = None if options.align_corners else whole_factor(self._low_res, self._full_res)
        self.factor = whole or 1
        self._before = self.factor - self.factor // 2  # pixels of the first cell that lie outside the image
        self._cells: Tensor | None = None
        self._upsamplings: dict[tuple[int, int], CellUpsampling] = {}

    def parts(self, max_pixels: int) -> tuple[list[_Block], Tensor]:
        """Return the blocks worth computing whole, and (B,) int64 labeled pixels outside of them.

        Args:
            max_pixels: of a block.
        """
        labeled = self._target != self._ignore_index
        factor, height, width = self.factor, self._low_res[0] + 1, self._low_res[1] + 1
        max_cells = min(max_pixels // factor**2, _MAX_CELLS)
        if factor == 1 or max_cells == 0 or labeled.numel() == 0:
            return [], labeled.flatten().nonzero()[:, 0]
        # 1. Count the labeled pixels of every cell.
        self._cells = self._in_cells()
        labeled_of_cells = (self._cells != self._ignore_index).sum(dim=(1, 2))  # (N, h+1, w+1)
        # 2. Cut rows and columns of cells into blocks of nearly equal size, about square.
        columns = edges_of(width, min(width, max(1, math.isqrt(max_cells))))
        widest = max(end - first for first, end in pairwise(columns))
        rows = edges_of(height, min(height, max_cells // widest))
        # 3. Count the labeled pixels of every block, by differences of cumulative sums at its edges.
        sums = F.pad(labeled_of_cells.cumsum(dim=1).cumsum(dim=2), (1, 0, 1, 0))
        labeled_of_blocks = sums[:, rows][:, :, columns].diff(dim=1).diff(dim=2)  # (N, R, K)
        heights, widths = (torch.tensor(edges, device=sums.device).diff() for edges in (rows, columns))
        pixels = factor**2 * heights[:, None] * widths  # (R, K)
        # 4. Keep the blocks that are labeled for the most part.
        worth = labeled_of_blocks >= _MIN_LABELED * pixels
        all_labeled = (labeled_of_blocks == pixels).tolist()
        blocks = [
            _Block(
                image,
                slice(*rows[row : row + 2]),
                slice(*columns[column : column + 2]),
                all_labeled[image][row][column],
            )
            for image, row, column in worth.nonzero().tolist()
        ]
        # 5. Mark the pixels of the other blocks, cut off what lies outside the image, keep the labeled.
        outside = (~worth).repeat_interleave(widths * factor, dim=2)
        outside = outside.repeat_interleave(heights * factor, dim=1)  # (N, H+s, W+s)
        inside = (slice(self._before, self._before + side) for side in self._full_res)
        return blocks, (labeled & outside[:, *inside]).flatten().nonzero()[:, 0]

    def _in_cells(self) -> Tensor:
        """Arrange the target as (N, s, s, h+1, w+1), with `ignore_index` outside the image."""
        factor, before = self.factor, self._before
        padding = (before, factor - before, before, factor - before)
        padded = F.pad(self._target, padding, value=self._ignore_index)
        cells = padded.view(len(padded), self._low_res[0] + 1, factor, self._low_res[1] + 1, factor)
        return cells.permute(0, 2, 4, 1, 3)

    def compare_blocks(
        self, tiles: Tiles, blocks: list[_Block], weight: float, gradient: Tensor | None
    ) -> Tensor:
        """Compare blocks of one size with all classes, and add to the gradient of the padded maps.

        Returns:
            The (p, 1) losses of all their pixels, zero where unlabeled.
        """
        assert self._cells is not None
        cells = blocks[0].cells
        target = torch.cat([self._cells[block.pixels].reshape(-1) for block in blocks])
        unlabeled = None
        if not all(block.all_labeled for block in blocks):
            unlabeled = (target == self._ignore_index)[:, None]
            target.masked_fill_(unlabeled[:, 0], 0)
        upsampling = self._upsamplings.get(cells)
        if upsampling is None:
            upsampling = self._upsamplings[cells] = CellUpsampling(self.factor, cells, self.padded)
        low_res_embeddings = torch.cat([self.padded[block.corners].flatten(0, 1) for block in blocks])
        chunk = tiles.chunk(low_res_embeddings, target, upsampling, unlabeled)
        rows = len(target) // len(blocks)
        losses, low_res_gradient = tiles.add_whole(chunk, rows, weight, gradient is not None)
        if gradient is not None and low_res_gradient is not None:
            of_blocks = low_res_gradient.split(len(low_res_embeddings) // len(blocks))
            for block, block_gradient in zip(blocks, of_blocks, strict=True):
                part = gradient[block.corners]
                part.add_(block_gradient.view(part.shape))
        return losses

    def compare_pixels(
        self, tiles: Tiles, pixels: Tensor, size: TileSize, weight: float, gradient: Tensor | None
    ) -> Tensor:
        """Compare (B,) labeled pixels with all classes, and add to the gradient of the padded maps.

        Returns:
            Their (B, 1) losses.
        """
        height, width = self._low_res
        corners, weights = corners_of_pixels(
            pixels, self._low_res, self._full_res, self.padded.dtype, align_corners=self._align_corners
        )
        lines = corners // width  # of all images
        corners = (lines + 2 * (lines // height) + 1) * (width + 2) + corners % width + 1
        rows = self.padded.flatten(0, 2)
        embeddings = F.embedding_bag(corners, rows, mode="sum", per_sample_weights=weights)
        chunk = tiles.chunk(embeddings, self._target.flatten()[pixels])
        losses, pixel_gradient = compare(tiles, chunk, size, weight, gradient is not None)
        if gradient is not None and pixel_gradient is not None:
            corner_gradient = (weights[:, :, None] * pixel_gradient[:, None]).flatten(0, 1)
            gradient.flatten(0, 2).index_add_(0, corners.flatten(), corner_gradient)
        return losses

    def unpadded(self, gradient: Tensor) -> Tensor:
        """Turn (N, h+2, w+2, D) into (N, D, h, w): add the gradient of repeated pixels to the edge pixels."""
        gradient[:, 1] += gradient[:, 0]
        gradient[:, -2] += gradient[:, -1]
        gradient[:, :, 1] += gradient[:, :, 0]
        gradient[:, :, -2] += gradient[:, :, -1]
        return gradient[:, 1:-1, 1:-1].permute(0, 3, 1, 2).contiguous()


def edges_of(cells: int, max_length: int) -> list[int]:
    """Cut a row of cells into as few parts as possible, of nearly the same length, and return the cuts."""
    parts = -(-cells // max_length)
    return [cells * part // parts for part in range(parts + 1)]


def _groups(blocks: list[_Block], factor: int, max_pixels: int) -> Iterator[list[_Block]]:
    """Group blocks of one size: at least one block, and at most so many pixels if there are more."""
    by_size: dict[tuple[int, int], list[_Block]] = {}
    for block in blocks:
        by_size.setdefault(block.cells, []).append(block)
    for (rows, columns), same in by_size.items():
        number = max(1, max_pixels // (factor**2 * rows * columns))
        for first in range(0, len(same), number):
            yield same[first : first + number]
